# docker build -t gpt2_lightning .                                   for CPUs
# docker build -t gpt2_lightning --build-arg TORCH_BACKEND=cu130 .   for NVIDIA GPUs (run with --gpus all)
#
# docker run --rm -v "$PWD:/data" --user "$(id -u)" gpt2_lightning fit --config quickstart
# docker run --rm -v "$PWD:/data" --user "$(id -u)" -p 127.0.0.1:8000:8000 gpt2_lightning \
#   serve --model lightning_logs/version_0 --host 0.0.0.0
FROM python:3.11-slim

ARG TORCH_BACKEND=cpu
# Triton, with which torch compiles for GPUs, calls a C compiler
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY configs configs
COPY gpt2_lightning gpt2_lightning
RUN pip install --no-cache-dir uv==0.13.9 \
    && uv pip install --system --no-cache --torch-backend "$TORCH_BACKEND" \
        --constraints constraints.txt ".[serve]"

# the user of `docker run --user` has no home of their own
ENV XDG_CACHE_HOME=/data/.cache HF_HOME=/data/.cache/huggingface
WORKDIR /data
ENTRYPOINT ["gpt2-lightning"]
CMD ["--help"]
