# One image for every process: the command says which (serve, coordinate, migrate up).
FROM python:3.11-slim AS build
WORKDIR /src
COPY deploy/requirements.lock deploy/requirements.lock
RUN python -m venv /opt/duckmesh \
    && /opt/duckmesh/bin/pip install --no-cache-dir --require-hashes -r deploy/requirements.lock
COPY . .
RUN /opt/duckmesh/bin/pip install --no-cache-dir --no-deps .

FROM python:3.11-slim
RUN useradd --system --create-home --home-dir /var/lib/duckmesh duckmesh
COPY --from=build /opt/duckmesh /opt/duckmesh
ENV PATH=/opt/duckmesh/bin:$PATH \
    DUCKMESH_DATA_DIR=/var/lib/duckmesh \
    PYTHONUNBUFFERED=1
USER duckmesh
WORKDIR /var/lib/duckmesh
EXPOSE 31337 31338
ENTRYPOINT ["duckmesh"]
CMD ["serve"]
