# The image of pods, generator and probe. Two ways, one result:
#   docker build -t pushlab:dev .                          everything in the image; dependencies are a layer of their own
#   docker build -t pushlab:dev --target host .            copies target/debug/pushlab that `cargo build` made here (no registry of crates needed);
#        --build-arg BINARY=target/release/pushlab         another one. It needs the glibc of Debian 12 or older.
# Several architectures: docker buildx build --platform linux/amd64,linux/arm64 --tag REGISTRY/pushlab:TAG --push .

FROM debian:bookworm-slim AS base
ENV PATH=/usr/local/bin:/usr/bin:/bin \
    PUSHLAB_LISTEN=0.0.0.0:8080 PUSHLAB_ADMIN_LISTEN=0.0.0.0:9090
# By number, so that a cluster can see that it is not root. It writes nothing: run it with a read-only root.
USER 65532:65532
WORKDIR /tmp
EXPOSE 8080 9090
ENTRYPOINT ["pushlab"]
CMD ["serve"]

FROM base AS host
ARG BINARY=target/debug/pushlab
COPY --chown=0:0 ${BINARY} /usr/local/bin/pushlab

FROM rust:1-bookworm AS build
WORKDIR /src
# Dependencies first: this layer is made again only when they change.
COPY Cargo.toml Cargo.lock ./
RUN mkdir src && echo 'fn main() {}' > src/main.rs && touch src/lib.rs && cargo build --release --locked && rm -r src
COPY . .
RUN touch src/main.rs src/lib.rs && cargo build --release --locked

FROM base
# For TLS towards databases and collectors; the image for a binary of the host has what the base image has.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build --chown=0:0 /src/target/release/pushlab /usr/local/bin/pushlab
