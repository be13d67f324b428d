# The daemon on edge hardware; holds neither TensorFlow nor aio-pika. Built from the root:
#   docker build -f deploy/docker/agent.Dockerfile -t overspill-agent .
# On armv7l LiteRT's only wheel is for CPython 3.11: add --build-arg PYTHON=3.11.
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS build
WORKDIR /src
# Dependencies first: they change less often than the code.
COPY requirements/setup.lock requirements/dev.lock requirements/edge.lock requirements/
RUN python -m venv /opt/overspill \
    && /opt/overspill/bin/pip install --no-cache-dir --disable-pip-version-check \
        --require-hashes -r requirements/edge.lock \
    && pip install --no-cache-dir --disable-pip-version-check \
        --require-hashes -r requirements/setup.lock
COPY pyproject.toml README.md LICENSE ./
COPY broker/ broker/
COPY builder/ builder/
COPY bundle/ bundle/
COPY cascade/ cascade/
COPY lifecycle/ lifecycle/
COPY edge_agent/ edge_agent/
COPY cloud_worker/ cloud_worker/
COPY fleet/ fleet/
COPY overspill/ overspill/
# The build backend is held to the hashes of dev.lock as well.
RUN uv build --wheel --build-constraints requirements/dev.lock --require-hashes \
        --out-dir /wheels \
    && /opt/overspill/bin/pip install --no-cache-dir --disable-pip-version-check \
        --no-index --no-deps /wheels/overspill-*.whl

FROM python:${PYTHON}-slim
# The same number in every image, so that they can share the registry's volume.
RUN useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin overspill \
    && install -d -o overspill -g overspill /var/lib/overspill /var/lib/overspill/agent
COPY --from=build /opt/overspill /opt/overspill
ENV PATH=/opt/overspill/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    OVERSPILL_AGENT_STATE_DIR=/var/lib/overspill/agent
USER overspill
WORKDIR /var/lib/overspill
STOPSIGNAL SIGTERM
ENTRYPOINT ["/opt/overspill/bin/overspill-agent"]
CMD ["run"]
