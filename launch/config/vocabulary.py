"""The words that people bring from other trainers, and what they are called here.

In: a key or a value that is not accepted. Out: where the thing is set. Only refused words are
looked up (tests/launch/config/test_messages.py holds the tables against the parser).
"""

LENGTH = (
    "the length of a run is phases.NAME.samples, in image-text pairs (epochs x the data's pairs, "
    "or steps x batch_size)"
)
RATE = "the learning rate is phases.NAME.learning_rate"
WARMUP = "the warm-up is phases.NAME.warmup_samples, in image-text pairs (steps x batch_size)"
BATCH = "the global batch, over all processes, is phases.NAME.batch_size"
PARTS = "memory is saved by model.chunks: parts in which the towers see a batch"
PRECISION = "the precision is trainer.precision: auto, bf16-mixed, 16-mixed, 32-true, ..."
CLIPPING = "gradients are clipped by grad_clip: norm, value, zclip, agc, ..."
OPTIMIZER = "the optimizer's slot is optim: adamw, lion, muon, ... (counterpoint fit --help optim)"
DECAY = "it is an argument of the optimizer, such as optim.init_args.weight_decay"
LOSS = "the losses' slot is objective: clip, siglip, ... (counterpoint fit --help objective)"
CURVE = "the curve of the learning rate is phases.NAME.schedule: cosine, constant or rsqrt"
SHARDS = "shards are named by data.manifest, a .parquet file that `counterpoint data index` writes"
WORKERS = "loader processes are data.num_workers"
LOGGERS = "loggers are trainer.logger: wandb, tensorboard, mlflow or csv"
DEVICES = (
    "GPUs of a node are trainer.devices; several nodes start by torchrun or `counterpoint launch`"
)
STRATEGY = "the strategy is trainer.strategy: ddp, fsdp2, hsdp, zero1, zero2 or zero3"
ACCELERATOR = "the device is trainer.accelerator: gpu, cpu or auto (--trainer gpu, --trainer cpu)"
WEIGHTS = "weights to start from are init_from: a run, a file or a model of another library"
RESUME = "a run is continued with --resume RUN_DIR"
FOLDER = "results go to run_dir (runs/NAME where it is not given)"
NAME = "a run's name is `name`"
SAVES = "checkpoints follow checkpoint.every_n_steps and checkpoint.keep"
TESTS = "a run is evaluated on evaluation.suite every evaluation.every_n_steps steps"
SIZE = "images get the size of the image tower: model.image.init_args.image_size"
CONTEXT = "the length of texts is that of the text tower: model.text.init_args.context_length"
COMPILE = "towers are compiled by trainer.compile: inductor"
TEACHERS = "teachers are named in `teachers` of the run file (docs/distillation.md)"
PHASES = "phases are named in `phases`, such as phases.train.samples (one phase called train)"
MODEL = "the model's slot is model: vit_b32, ... (counterpoint fit --help model)"
EXACT = "it needs no key: the loss of the global batch and all its gradients are exact"
PATCHES = "patches are left out by phases.NAME.image_reducer"
FREEZING = "layers are frozen by groups of the optimizer, such as optim: lit"
AVERAGE = "the moving average of the weights is `ema`, such as ema.decay"
CALLBACKS = "Lightning's callbacks and plugins are trainer.callbacks and trainer.plugins"
LOADING = "which samples a step gets follows from the seed: nothing can be limited or shuffled"
SEED = "the seed is `seed`"

_MEANINGS = {
    LENGTH: "epochs num_epochs n_epochs max_epochs min_epochs num_train_epochs steps num_steps "
    "max_steps min_steps n_steps total_steps train_steps num_train_steps max_train_steps "
    "iterations num_iterations max_iters train_num_samples samples num_samples fast_dev_run",
    RATE: "lr base_lr max_lr peak_lr init_lr learning_rate learningrate",
    WARMUP: "warmup warmup_steps warmup_epochs warmup_iters num_warmup_steps warmup_ratio "
    "warmup_samples",
    BATCH: "batch_size bs batch batchsize global_batch_size train_batch_size local_batch_size "
    "per_gpu_batch_size per_device_batch_size per_device_train_batch_size micro_batch_size",
    PARTS: "accum_freq accum accumulation grad_accum gradient_accumulation accumulation_steps "
    "gradient_accumulation_steps accumulate_grad_batches grad_checkpointing chunks "
    "gradient_checkpointing activation_checkpointing mini_batch_size",
    PRECISION: "precision amp use_amp fp16 bf16 fp32 tf32 amp_bf16 dtype torch_dtype "
    "mixed_precision half",
    CLIPPING: "clip grad_clip_norm clip_grad clip_grad_norm clip_norm max_grad_norm max_norm "
    "gradient_clip gradient_clip_val gradient_clip_algorithm gradient_clipping clip_value",
    OPTIMIZER: "optimizer optimiser optimizers opt optimizer_name",
    DECAY: "weight_decay wd betas beta1 beta2 eps momentum",
    LOSS: "loss losses criterion loss_fn terms siglip logit_scale temperature",
    CURVE: "schedule scheduler lr_scheduler lr_schedule lr_scheduler_type lr_policy decay",
    SHARDS: "manifest train_data train_path dataset datasets shards train_shards urls data_path "
    "data_dir data_root dataset_type csv webdataset",
    WORKERS: "workers num_workers n_workers dataloader_num_workers loader_workers",
    LOGGERS: "logger loggers report_to wandb tensorboard mlflow wandb_project_name log_to "
    "use_wandb wandb_project",
    DEVICES: "devices gpus num_gpus n_gpus ngpus gpu_ids nproc nproc_per_node world_size nodes "
    "num_nodes nnodes",
    STRATEGY: "strategy fsdp fsdp2 hsdp hybrid_shard ddp zero deepspeed deepspeed_stage zero_stage "
    "distributed dist_backend",
    ACCELERATOR: "accelerator device gpu cuda cpu mps",
    WEIGHTS: "pretrained pretrained_weights weights init init_weights ckpt ckpt_path load "
    "checkpoint_path load_from finetune finetune_from pretrained_image",
    RESUME: "resume resume_from resume_from_checkpoint resume_path auto_resume",
    FOLDER: "output output_dir out out_dir logs log_dir logs_dir save_dir workdir work_dir "
    "default_root_dir results results_dir",
    NAME: "run_name exp_name experiment experiment_name",
    SAVES: "save_frequency save_freq save_steps save_every save_every_n_steps save_interval "
    "save_total_limit save_most_recent delete_previous_checkpoint enable_checkpointing",
    TESTS: "suite val validation val_data eval eval_every eval_steps eval_interval val_frequency "
    "val_check_interval check_val_every_n_epoch imagenet imagenet_val zeroshot_frequency "
    "num_sanity_val_steps limit_val_batches limit_test_batches limit_predict_batches",
    SIZE: "image_size img_size input_size resolution force_image_size",
    CONTEXT: "context_length max_length max_seq_length force_context_length",
    COMPILE: "compile torchcompile torch_compile",
    TEACHERS: "teacher distill distill_model distill_pretrained distillation",
    PHASES: "phase stage train training",
    MODEL: "model_name arch architecture backbone image_encoder vision_model",
    EXACT: "local_loss gather_with_grad use_distributed_sampler horovod",
    PATCHES: "patch_dropout force_patch_dropout",
    FREEZING: "lock_image lock_text freeze frozen lock_image_unlocked_groups",
    AVERAGE: "ema_decay use_ema model_ema",
    CALLBACKS: "callbacks plugins profiler",
    LOADING: "overfit_batches limit_train_batches reload_dataloaders_every_n_epochs shuffle "
    "dataset_resampled drop_last",
    SEED: "random_seed seed_everything manual_seed",
}
WORDS = {word: text for text, words in _MEANINGS.items() for word in words.split()}

# Words of the table above that are keys here, in their places.
PHASE_WORDS = frozenset({"batch_size", "learning_rate", "samples", "schedule", "warmup_samples"})
TRAINER_WORDS = frozenset(
    {"accelerator", "accumulate_grad_batches", "callbacks", "compile", "devices", "logger"}
    | {"num_nodes", "plugins", "precision", "profiler", "strategy"}
)

_PRECISIONS = {
    "bf16-mixed": "amp_bf16 amp_bfloat16 bfloat16 bf16_mixed mixed_bf16 autocast",
    "bf16-mixed (or 16-mixed, which needs a scaler)": "amp mixed half_mixed",
    "16-mixed": "fp16 float16 half amp_fp16 fp16-mixed fp16_mixed",
    "32-true": "fp32 float32 float full single tf32",
    "bf16-true": "pure_bf16",
    "16-true": "pure_fp16",
    "64-true": "fp64 float64 double",
}
_LOGGERS = {"tensorboard": "tb tensorboardx", "wandb": "w&b weights_and_biases"}
# key -> refused value -> the accepted one
VALUES = {
    key: {word: meant for meant, words in table.items() for word in words.split()}
    for key, table in {"trainer.precision": _PRECISIONS, "trainer.logger": _LOGGERS}.items()
}


def meaning(word: str) -> str | None:
    """Returns where the thing is set that other trainers call `word`; None: unknown."""
    return WORDS.get(word.lower().replace("-", "_"))


def accepted_value(key: str, value: object) -> str | None:
    """Returns the accepted value that is meant by a refused one; None: unknown."""
    return VALUES.get(key, {}).get(str(value).lower())
