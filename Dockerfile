# An image for CPUs, from the tested lock:
#   docker build --build-arg PIP_EXTRA_INDEX_URL=ADDRESS -t capo_fast .     ADDRESS: PyTorch's index of CPU wheels
#   docker run --rm --shm-size=1g -v "$PWD/runs:/srv/capo/runs" capo_fast train --run.dir runs/first
# It has never been built: there was no builder at hand. For GPUs take a CUDA image of NVIDIA's and requirements/cuda.txt.
FROM python:3.11-slim-bookworm

# g++ builds the loss library here, and torch.compile uses it at run time.
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*

ARG PIP_EXTRA_INDEX_URL
ENV PIP_NO_CACHE_DIR=1 PYTHONNOUSERSITE=1 PYTHONUNBUFFERED=1

WORKDIR /srv/capo
COPY requirements/cpu.txt requirements/
RUN pip install --no-deps -r requirements/cpu.txt

COPY pyproject.toml setup.py LICENSE README.md ./
COPY csrc csrc
COPY kernels kernels
COPY configs configs
COPY capo_fast capo_fast
RUN pip install --no-deps --no-build-isolation . \
    && python -c 'import capo_kernels as ck; assert ck.status()["cpu"] == "available", ck.status()' \
    && useradd --create-home capo \
    && mkdir runs \
    && chown capo runs

USER capo
ENTRYPOINT ["capo"]
CMD ["--help"]
