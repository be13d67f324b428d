# The operators' program: registry, rollouts, inventory. Built from the root:
#   docker build -f deploy/docker/fleet.Dockerfile -t overspill-fleet .
# Operators' commands run in it: docker compose exec fleet overspill device list
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS build
WORKDIR /src
# Dependencies first: they change less often than the code.
COPY requirements/setup.lock requirements/dev.lock requirements/fleet.lock requirements/
RUN python -m venv /opt/overspill \
    && /opt/overspill/bin/pip install --no-cache-dir --disable-pip-version-check \
        --require-hashes -r requirements/fleet.lock \
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
    && install -d -o overspill -g overspill /var/lib/overspill \
        /var/lib/overspill/fleet /var/lib/overspill/fleet/registry \
        /var/lib/overspill/record
COPY --from=build /opt/overspill /opt/overspill
ENV PATH=/opt/overspill/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    OVERSPILL_FLEET_HOME=/var/lib/overspill/fleet
USER overspill
WORKDIR /var/lib/overspill
STOPSIGNAL SIGTERM
ENTRYPOINT ["/opt/overspill/bin/overspill"]
CMD ["fleet", "run"]
