# docker build -t counterpoint .
# docker run --rm --gpus all --ipc host -v "$PWD:/project" -w /project counterpoint fit --config ...
FROM python:3.12-slim

# torch.compile and Triton build their kernels with the system's compiler; runs record the commit.
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ git \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/counterpoint
COPY . .
RUN pip install --no-cache-dir -c constraints.txt \
    -e ".[demo,wandb,s3,gcs,deepspeed,curate,syntax]"

ENTRYPOINT ["counterpoint"]
CMD ["--help"]
