# Targets: service (the default), balancer, scaler, convert.  docker build --target service -t sous/service .
# Bases are Debian's official slim images; `make base-images` makes the same tags where no image registry is reached.
# The balancer's suite is newer: nginx keeps a client's connection over a reload from 1.27.4 on. An older one works, too.
# DEBIAN_SNAPSHOT, the address of a snapshot of Debian's archive, with bases by digest: the same packages every time.
ARG DEBIAN_SNAPSHOT=
ARG SERVICE_BASE=debian:trixie-slim
ARG CONVERT_BASE=debian:trixie-slim
ARG SCALER_BASE=debian:trixie-slim
ARG BALANCER_BASE=debian:forky-slim

FROM ${BALANCER_BASE} AS balancer
ARG DEBIAN_SNAPSHOT
RUN --mount=type=bind,source=deploy/apt-install,target=/tmp/apt-install /tmp/apt-install nginx
COPY deploy/nginx /opt/sous/nginx
RUN chmod -R a+rX /opt/sous
USER www-data
EXPOSE 8080
HEALTHCHECK --interval=30s --timeout=2s --start-period=60s --retries=3 CMD ["/bin/bash", "-c", \
    "exec 3<>/dev/tcp/127.0.0.1/8080 && printf 'GET /health/ready HTTP/1.0\\r\\n\\r\\n' >&3 && read -r _ status _ <&3 && [ \"$status\" = 200 ]"]
CMD ["/opt/sous/nginx/balance"]

# Moves the replicas of the scaled stack through the Docker engine's socket, which only root may open.
FROM ${SCALER_BASE} AS scaler
ARG DEBIAN_SNAPSHOT
RUN --mount=type=bind,source=deploy/apt-install,target=/tmp/apt-install /tmp/apt-install docker-cli docker-compose python3 python3-yaml
COPY perf/__init__.py perf/hpa.py perf/manifest.py perf/scaler.py perf/compose.py perf/engine.py perf/replica.py \
     perf/usage.py perf/cgroups.py perf/deployment.py /opt/sous/perf/
COPY deploy/k8s /opt/sous/deploy/k8s
WORKDIR /opt/sous
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HOME=/tmp
ENTRYPOINT ["python3", "-m", "perf.scaler"]

# docker run --rm -v "$PWD/in:/in:ro" -v "$PWD/models:/out" --user "$(id -u)" sous/convert /in/model.keras --name NAME --images /in/photos --models /out
FROM ${CONVERT_BASE} AS convert
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt
ARG DEBIAN_SNAPSHOT
RUN --mount=type=bind,source=deploy/apt-install,target=/tmp/apt-install /tmp/apt-install python3 python3-pip
COPY requirements/convert.txt /tmp/convert.txt
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --require-hashes --only-binary :all: --no-deps --no-compile --root-user-action=ignore \
        --target /opt/sous/packages -r /tmp/convert.txt \
    && python3 -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/sous/packages
COPY service /opt/sous/service
COPY convert /opt/sous/convert
RUN chmod -R a+rX /opt/sous/service /opt/sous/convert
WORKDIR /opt/sous
ENV PYTHONPATH=/opt/sous/packages PYTHONDONTWRITEBYTECODE=1 HOME=/tmp
USER 10001:10001
ENTRYPOINT ["python3", "-m", "convert"]

FROM ${SERVICE_BASE} AS python
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
ARG DEBIAN_SNAPSHOT
RUN --mount=type=bind,source=deploy/apt-install,target=/tmp/apt-install /tmp/apt-install python3 \
    && rm -rf /usr/lib/python3*/{pydoc_data,idlelib,turtledemo,lib2to3}
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PYTHONPATH=/opt/sous/packages

# Wheels by their hashes only. What no server runs is left behind: Litestar's command line and example factories, headers,
# tests, debug symbols, and ONNX Runtime's C library, which its Python module carries within itself. Bytecode is made here,
# for a read-only container.
FROM python AS packages
ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt
ARG DEBIAN_SNAPSHOT
RUN --mount=type=bind,source=deploy/apt-install,target=/tmp/apt-install /tmp/apt-install python3-pip binutils
COPY requirements/service.txt /tmp/service.txt
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --require-hashes --only-binary :all: --no-deps --no-compile --root-user-action=ignore \
        --target /opt/sous/packages -r /tmp/service.txt \
    && cd /opt/sous/packages \
    && rm -r bin {faker,polyfactory,rich,rich_click,pygments,markdown_it,mdurl,httpx,httpcore,certifi} \
        numpy/{f2py,_core/include,_core/lib} onnxruntime/{tools,transformers,quantization,datasets} \
        onnxruntime/capi/libonnxruntime.so.* \
    && find . \( -type d \( -name tests -o -name __pycache__ \) -o -name '*.pyi' -o -name '*.h' \) -prune -exec rm -r {} + \
    && strip --strip-debug uvloop/*.so \
    && python3 -m compileall -q --invalidation-mode unchecked-hash .

# Readable to the user below also where the checkout is its owner's alone (umask 077).
FROM python AS files
COPY models /opt/sous/models
COPY service /opt/sous/service
RUN chmod -R a+rX /opt/sous && python3 -m compileall -q --invalidation-mode unchecked-hash /opt/sous/service

FROM python AS service
RUN groupadd --gid 10001 sous && useradd --uid 10001 --gid sous --no-create-home --shell /usr/sbin/nologin sous
COPY --from=packages /opt/sous/packages /opt/sous/packages
COPY --from=files /opt/sous /opt/sous
WORKDIR /opt/sous
ENV SOUS_MODELS_DIR=/opt/sous/models HOME=/tmp
USER 10001:10001
EXPOSE 8000
# bash's own /dev/tcp: 3 ms of CPU, where a Python process would take 100. The engine itself takes 60 to start a check
# in a container, and those of all containers at once, hence seldom; the balancer asks each replica itself.
HEALTHCHECK --interval=30s --timeout=2s --start-period=60s --retries=3 CMD ["/bin/bash", "-c", \
    "exec 3<>/dev/tcp/127.0.0.1/8000 && printf 'GET /health/ready HTTP/1.0\\r\\n\\r\\n' >&3 && read -r _ status _ <&3 && [ \"$status\" = 200 ]"]
STOPSIGNAL SIGTERM
CMD ["python3", "-m", "service", "--bind", "0.0.0.0:8000"]
