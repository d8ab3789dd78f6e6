# docker build -t talker .                          for a CPU
# docker build -t talker --build-arg DEVICE=cuda .  for an NVIDIA GPU
# docker run --rm --gpus all -v "$PWD:/work" talker talker run me.mp4
FROM debian:bookworm-slim
ARG DEVICE=cpu
COPY . /opt/talker
RUN /opt/talker/envs/container.sh "$DEVICE"
ENV PATH=/opt/talker/.venv/bin:$PATH NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /work
CMD ["talker", "--help"]
