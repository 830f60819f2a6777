# One image for workers and for the exporter: what it does is the command.
#
#   docker run IMAGE tracedjobs exporter --store redis://redis/0 --host 0.0.0.0
#   docker run IMAGE celery -A tasks worker
#
# Commands are lists everywhere, so that the program itself is process 1 and gets SIGTERM: no shell between.

FROM python:3.13-slim-bookworm AS build
RUN pip install --no-cache-dir --disable-pip-version-check uv==0.13.8
WORKDIR /src
COPY pyproject.toml uv.lock README.md LICENSE ./
COPY docs/runbooks docs/runbooks
COPY tracedjobs tracedjobs
ENV UV_PROJECT_ENVIRONMENT=/opt/tracedjobs UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never
RUN uv sync --frozen --no-dev --no-editable --no-cache --extra cli --extra celery --extra otlp

FROM python:3.13-slim-bookworm
# The run directory is made here, so that a volume mounted on it belongs to the user below: a killed container's
# successor then goes on at the very item that was in hand.
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin tracedjobs \
    && install -d -m 0700 -o 10001 -g 10001 /run/tracedjobs \
    && install -d -o 10001 -g 10001 /app
COPY --from=build /opt/tracedjobs /opt/tracedjobs
ENV PATH=/opt/tracedjobs/bin:$PATH PYTHONUNBUFFERED=1 TRACEDJOBS_RUN_DIR=/run/tracedjobs
WORKDIR /app
USER 10001:10001
STOPSIGNAL SIGTERM
CMD ["tracedjobs", "--help"]
