# Two stages: the first builds as CI does, the second holds only what serving needs. tests/python/image.py carries out the steps of the
# second one, with a binary that is built already.
# The image's own compiler builds; .dockerignore leaves rust-toolchain.toml out, or rustup would download another.
FROM rust:1.95-slim-bookworm AS build
RUN apt-get update \
 && apt-get install -y --no-install-recommends gcc libc6-dev make python3 python3-pip python3-venv \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN make dist

# The binary has no symbols: 45 MB instead of 240. `docker build --target build` keeps them, in /src/target/dist/out/sluicegate.debug.
FROM debian:bookworm-slim
# ONNX's StringNormalizer uses the locale en_US unless a model names another one.
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates libstdc++6 locales \
 && localedef -i en_US -f UTF-8 en_US.UTF-8 \
 && rm -rf /var/lib/apt/lists/*
# The data directory is made before VOLUME: a new volume takes over its owner and mode. Its group is 0, because some platforms (OpenShift)
# run containers as any user of that group.
RUN groupadd --system --gid 10001 sluicegate \
 && useradd --system --uid 10001 --gid 10001 --home-dir /srv/sluicegate --no-create-home --shell /usr/sbin/nologin sluicegate \
 && install -d -m 0755 /srv/sluicegate \
 && install -d -o 10001 -g 0 -m 2770 /srv/sluicegate/data
COPY --from=build /src/target/dist/out/sluicegate /usr/local/bin/sluicegate
COPY --from=build /src/.ort/libonnxruntime.so /usr/local/lib/libonnxruntime.so
COPY --from=build /src/LICENSE-MIT /src/LICENSE-APACHE /src/.ort/LICENSE /usr/local/share/doc/sluicegate/
COPY deploy/image/sluicegate.toml /srv/sluicegate/config/sluicegate.toml
COPY models /srv/sluicegate/models
# A number, so that Kubernetes can see that it is not root (runAsNonRoot).
USER 10001
WORKDIR /srv/sluicegate
ENV ORT_DYLIB_PATH=/usr/local/lib/libonnxruntime.so
# Traffic documents, history and the prediction log survive a new container only if this is a volume with a name.
VOLUME /srv/sluicegate/data
EXPOSE 8080
# Readiness, asked of the admin plane on the container's loopback. It needs no credentials.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["sluicegate", "ready"]
# The server drains its requests and flushes the prediction log (config/sluicegate.toml, shutdown_grace).
STOPSIGNAL SIGTERM
# Process 1 is the supervisor: it passes signals on and reaps processes, so that no --init is needed (docs/SUPERVISOR.md).
# SageMaker starts a container with the argument "serve".
ENTRYPOINT ["sluicegate"]
CMD ["serve"]
