# One image for every process of Tessera: web, workers, beat. CPU torch, no compiler, not root.
FROM python:3.11-slim-bookworm AS build
WORKDIR /app
RUN python -m venv /venv
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY cds cds
COPY ehr ehr
COPY fusion fusion
COPY web web
# pip's own variable: the address of PyTorch's CPU wheels (or of a mirror that has them). Whatever it finds, an
# image with the CUDA build, five times the size and of no use here, is not made.
ARG PIP_EXTRA_INDEX_URL=""
RUN /venv/bin/pip install --no-cache-dir -c constraints.txt '.[pretrained,encoders]' \
    && /venv/bin/python -c "import torch; assert torch.version.cuda is None, 'not a CPU torch: set PIP_EXTRA_INDEX_URL'"

FROM python:3.11-slim-bookworm
RUN groupadd --gid 10001 tessera && useradd --uid 10001 --gid tessera --create-home tessera \
    && install -d -o tessera -g tessera /data
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 OMP_NUM_THREADS=1 \
    TESSERA_ENV=production TESSERA_DATA_DIR=/data HF_HUB_OFFLINE=1
WORKDIR /app
COPY --from=build /venv /venv
COPY manage.py ./
USER tessera
VOLUME /data
EXPOSE 8000
CMD ["gunicorn", "cds.asgi:application", "-k", "cds.web_worker.Worker", "--bind", "0.0.0.0:8000", \
     "--workers", "2", "--graceful-timeout", "8", "--timeout", "60", "--keep-alive", "75", \
     "--access-logfile", "-"]
