# Two stages: the first builds as CI does, the second holds only what serving needs.
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
 && apt-get install -y --no-install-recommends libstdc++6 locales \
 && localedef -i en_US -f UTF-8 en_US.UTF-8 \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --system --uid 10001 --home-dir /srv/sluicegate --create-home sluicegate
COPY --from=build /src/target/dist/out/sluicegate /usr/local/bin/sluicegate
COPY --from=build /src/.ort/libonnxruntime.so /usr/local/lib/libonnxruntime.so
COPY --from=build /src/LICENSE-MIT /src/LICENSE-APACHE /src/.ort/LICENSE /usr/local/share/doc/sluicegate/
COPY --chown=sluicegate config /srv/sluicegate/config
COPY --chown=sluicegate models /srv/sluicegate/models
USER sluicegate
WORKDIR /srv/sluicegate
ENV ORT_DYLIB_PATH=/usr/local/lib/libonnxruntime.so
# Traffic documents, history and the prediction log survive a restart only if this is a volume.
VOLUME /srv/sluicegate/data
EXPOSE 8080
# The admin plane listens on the container's loopback; this command asks it.
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s CMD ["sluicegate", "models"]
# Process 1 is the supervisor: it passes signals on and reaps processes, so that no --init is needed (docs/SUPERVISOR.md).
ENTRYPOINT ["sluicegate"]
CMD ["serve"]
