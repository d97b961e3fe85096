# Training on NVIDIA GPUs. Build, then train on the host's images with every GPU that the container sees:
#
#     docker build -t fastcnn .
#     docker run --rm --gpus all --ipc=host -v /data:/data:ro -v "$PWD/runs:/work/runs" \
#         fastcnn --arch resnet50 --data /data/imagenet
#
# --gpus all needs the NVIDIA Container Toolkit. --ipc=host: NCCL exchanges gradients through shared memory, of which
# a container has 64 MB otherwise. To own the files in runs/ yourself, add --user "$(id -u):$(id -g)".
#
# One process per GPU is the default; -e PET_NPROC_PER_NODE=2 starts two. Another command:
# docker run --rm --gpus all --entrypoint fastcnn fastcnn bench --arch resnet50
#
# CI does not build this image.
FROM pytorch/pytorch:2.11.0-cuda12.8-cudnn9-runtime

# Triton and torch.compile build their launchers with a C++ compiler and Python's headers.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ python3-dev \
    && rm -rf /var/lib/apt/lists/*

# The image's torch satisfies pyproject.toml and stays; the environment is the container.
ENV PIP_BREAK_SYSTEM_PACKAGES=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY fastcnn fastcnn
COPY kernels kernels
RUN python -m pip install ".[dali,tensorboard,timm]"

# Any user of --user may write caches and runs. USER names the folder of torch's compilation cache.
RUN useradd --create-home fastcnn && mkdir --parents /work/runs && chmod -R 1777 /home/fastcnn /work
ENV HOME=/home/fastcnn USER=fastcnn PET_NPROC_PER_NODE=gpu
USER fastcnn
WORKDIR /work

ENTRYPOINT ["torchrun", "-m", "fastcnn.train"]
