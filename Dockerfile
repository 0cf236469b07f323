# Four images from one file:
#   docker build --target cpu     -t bpr-service:cpu .        server and workers without a GPU
#   docker build --target cuda    -t bpr-service:cuda .       server and workers on NVIDIA GPUs
#   docker build --target trainer -t bpr-service:trainer .    workers that also retrain (GPU; see TRAINER_BACKEND)
#   docker build --target ray     -t bpr-service:ray .        nodes of a Ray cluster (for GPUs see RAY_BACKEND)
# What they hold, their size budget and how they are run: docs/deploy.md.

# Which build of torch they get: cu132 or cpu. The versions are those of requirements.lock either way.
ARG TRAINER_BACKEND=cu132
ARG RAY_BACKEND=cpu

FROM python:3.11.14-slim-bookworm@sha256:65a93d69fa75478d554f4ad27c85c1e69fa184956261b4301ebaf6dbb0a3543d AS base

# ---------------------------------------------------------------- build stages: nothing of them but /opt/bpr is shipped
FROM base AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_NO_CACHE=1 UV_PYTHON_DOWNLOADS=never
RUN python -m pip install --no-cache-dir uv==0.13.8 && uv venv --python "$(command -v python)" /opt/bpr
ENV VIRTUAL_ENV=/opt/bpr
WORKDIR /src

FROM build AS wheel
COPY pyproject.toml README.md LICENSE ./
COPY bpr_service bpr_service
COPY refiner_training refiner_training
RUN uv build --wheel --out-dir /dist

# torch's own index has builds of its own under these versions; the hashes of all other packages are checked.
FROM build AS locked
COPY requirements.lock ./
RUN awk '/^[a-z0-9]/ { torch = /^(torch|torchvision|triton|nvidia-[a-z0-9-]+)==/; if (torch) sub(/ \\$/, "") } \
      /^[a-z0-9]/ || !torch' requirements.lock >/constraints.txt

# Dependencies before the source, so that a change of the source leaves their layer alone.
FROM build AS build-cpu
COPY pyproject.toml ./
COPY --from=locked /constraints.txt ./
RUN uv pip install --torch-backend cpu --constraints constraints.txt \
    --requirements pyproject.toml --extra torch --extra server --extra jobs --extra s3 --extra otel
COPY --from=wheel /dist /dist
RUN uv pip install --no-deps /dist/*.whl

FROM build AS build-cuda
COPY pyproject.toml ./
COPY --from=locked /constraints.txt ./
RUN uv pip install --torch-backend cu132 --constraints constraints.txt \
    --requirements pyproject.toml --extra torch --extra server --extra jobs --extra s3 --extra otel
COPY --from=wheel /dist /dist
RUN uv pip install --no-deps /dist/*.whl

FROM build AS build-trainer
ARG TRAINER_BACKEND
COPY pyproject.toml ./
COPY --from=locked /constraints.txt ./
RUN uv pip install --torch-backend "$TRAINER_BACKEND" --constraints constraints.txt \
    --requirements pyproject.toml --extra torch --extra server --extra jobs --extra s3 --extra otel --extra train
COPY --from=wheel /dist /dist
RUN uv pip install --no-deps /dist/*.whl

# KubeRay asks a node's dashboard, which is another extra of Ray's own: what it needs beyond our lock is in docker/ray.lock.
FROM build AS build-ray
ARG RAY_BACKEND
COPY pyproject.toml docker/ray.lock ./
COPY --from=locked /constraints.txt ./
RUN uv pip install --torch-backend "$RAY_BACKEND" --constraints constraints.txt --constraints ray.lock \
    --requirements pyproject.toml --extra torch --extra server --extra jobs --extra s3 --extra otel --extra ray \
    "ray[default]"
COPY --from=wheel /dist /dist
RUN uv pip install --no-deps /dist/*.whl

# ---------------------------------------------------------------- what is shipped
FROM base AS runtime
# The environment in /opt/bpr has no pip; the interpreter's own goes too. 10001 owns the only two folders that are written.
RUN python -m pip uninstall --yes --root-user-action ignore pip setuptools wheel \
    && groupadd --gid 10001 bpr \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/bpr --shell /usr/sbin/nologin bpr \
    && install --directory --owner 10001 --group 10001 --mode 0750 /var/lib/bpr /var/cache/bpr
ENV PATH=/opt/bpr/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/var/lib/bpr \
    XDG_CACHE_HOME=/var/cache/bpr \
    NUMBA_CACHE_DIR=/var/cache/bpr/numba \
    CUDA_CACHE_PATH=/var/cache/bpr/cuda \
    BPR_HOST=0.0.0.0 \
    BPR_PORT=8000 \
    BPR_MODEL_STORE=/var/lib/bpr/models \
    BPR_JOBS_FOLDER=/var/lib/bpr/jobs
WORKDIR /var/lib/bpr
USER 10001:10001
VOLUME ["/var/lib/bpr", "/var/cache/bpr"]
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=180s --retries=3 CMD ["bpr", "healthcheck", "server"]
ENTRYPOINT ["bpr"]
CMD ["serve"]
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="bpr-service" \
      org.opencontainers.image.description="Exact boundaries for the masks of any segmentation model" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.base.name="python:3.11.14-slim-bookworm"

FROM runtime AS trainer
COPY --from=build-trainer /opt/bpr /opt/bpr
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
HEALTHCHECK --interval=30s --timeout=20s --start-period=180s --retries=3 CMD ["bpr", "healthcheck", "worker"]
CMD ["worker", "--kind", "train"]

# KubeRay may start nodes in a login shell, which does not keep PATH.
FROM runtime AS ray
COPY --from=build-ray /opt/bpr /opt/bpr
COPY --from=build-ray /opt/bpr/bin/ray /opt/bpr/bin/bpr /usr/local/bin/

# torch brings CUDA's libraries as packages; the driver comes from the host through NVIDIA's container toolkit.
FROM runtime AS cuda
COPY --from=build-cuda /opt/bpr /opt/bpr
ENV BPR_DEVICE=cuda NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

FROM runtime AS cpu
COPY --from=build-cpu /opt/bpr /opt/bpr
ENV BPR_DEVICE=cpu
