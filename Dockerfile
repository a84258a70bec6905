# The locked environment, and the project as a git and DVC repository in /workspace. docs/container.md says how it is
# built, run and tested.

# An exact tag; docs/container.md says how to pin its digest.
ARG BASE_IMAGE=python:3.11.14-slim-bookworm

FROM ${BASE_IMAGE} AS uv
ARG UV_VERSION=0.13.9
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m venv /opt/uv && /opt/uv/bin/pip install "uv==${UV_VERSION}"
# The system's certificates, so that a proxy's own is trusted; bytecode, because the user of the image cannot write it.
ENV PATH=/opt/uv/bin:$PATH UV_SYSTEM_CERTS=1 UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1

# The environment comes from the hashed lock alone: a change of source leaves it cached.
FROM uv AS deps
# yes: with what compute.compile needs, a compiler, headers and triton.
ARG COMPILE=
COPY container/slim.sh /opt/slim.sh
RUN --mount=type=bind,source=requirements.lock,target=/requirements.lock \
    --mount=type=cache,target=/root/.cache/uv \
    python3 -m venv --without-pip /opt/venv \
    && uv pip sync --python /opt/venv/bin/python --require-hashes /requirements.lock \
    && uv pip check --python /opt/venv/bin/python \
    && sh /opt/slim.sh /opt/venv "${COMPILE}"

FROM uv AS wheel
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/root/.cache/uv \
    uv build --wheel --out-dir /dist --build-constraint requirements-dev.lock --require-hashes

FROM ${BASE_IMAGE} AS runtime
ARG COMPILE=
# git: `dvc exp` needs it. A mounted clone belongs to another user: any is trusted, this is no shared machine.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git tini ${COMPILE:+g++ libc6-dev} \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/apt /var/log/dpkg.log \
    && git config --system safe.directory '*' \
    && git config --system user.name mlnt \
    && git config --system user.email mlnt@localhost \
    && groupadd --gid 1000 mlnt \
    && useradd --uid 1000 --gid 1000 --create-home mlnt \
    && mkdir /home/mlnt/.cache \
    && chmod 0777 /home/mlnt /home/mlnt/.cache
COPY --from=deps /opt/venv /opt/venv
# HOME and USER also hold for `--user` with a number that has no account. The workspace's code comes before the
# installed package, so that `mlnt` and DVC's stages run the same code, the mounted clone's when there is one.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/workspace \
    PYTHONUNBUFFERED=1 \
    HOME=/home/mlnt \
    USER=mlnt \
    DVC_NO_ANALYTICS=1 \
    DVC_SITE_CACHE_DIR=/tmp/dvc \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
# The project twice, 2 MB each: as it was built, and as the workspace that any user may write.
WORKDIR /opt/mlnt
COPY . .
RUN --mount=type=bind,from=uv,source=/opt/uv,target=/opt/uv \
    --mount=type=bind,from=wheel,source=/dist,target=/dist \
    /opt/uv/bin/uv pip install --quiet --no-cache --python /opt/venv/bin/python --no-deps --no-index /dist/*.whl \
    && chmod -R a+rX . \
    && git init --quiet --initial-branch main \
    && git add --all \
    && git commit --quiet --message "The project as it was built into the image" \
    && cp -a /opt/mlnt /workspace \
    && mkdir -p /workspace/.dvc/cache /workspace/data /workspace/models /workspace/checkpoints \
    && chmod -R a+rwX /workspace
WORKDIR /workspace
USER 1000:1000
STOPSIGNAL SIGINT
ENTRYPOINT ["/usr/bin/tini", "-g", "--", "sh", "/opt/mlnt/container/entrypoint.sh"]
