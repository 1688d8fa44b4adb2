/* What the parts of the null GPU share. */
#ifndef NULL_GPU_H
#define NULL_GPU_H
#include <stddef.h>

/* Adds 1 to the count of a name, and `amount` (bytes, operations) to its sum. */
void null_gpu_note(const char *name, double amount);
/* Notes that the host waits for the device, and tells whoever listens. */
void null_gpu_waits(const char *name);
/* Ends the process with the name of a function that nobody has written yet. */
int null_gpu_unknown(const char *name);
/* An attribute of the device, by the number that the runtime and the driver have in common. */
int null_gpu_attribute(int number);
/* Memory of a device. */
size_t null_gpu_bytes(void);
/* A new handle, different from all others. */
void *null_gpu_handle(void);

#define MAKE(p) (*(void **)(p) = null_gpu_handle(), 0)
#define OK(name) int name() { return 0; }

#endif
