# Dependencies are built apart, so that the image that runs has neither pip's cache nor a compiler.
FROM python:3.13-slim AS build
WORKDIR /build
COPY requirements.txt .
RUN python -m venv /venv && /venv/bin/pip install --no-cache-dir --disable-pip-version-check --require-hashes -r requirements.txt

FROM python:3.13-slim
RUN useradd --system --uid 10001 --no-create-home tally && install -d -o tally /data && \
    printf '#!/bin/sh\nexec python -m app "$@"\n' > /usr/local/bin/tally && chmod +x /usr/local/bin/tally
COPY --from=build /venv /venv
WORKDIR /tally
COPY app app
COPY static static
ENV PATH=/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    TALLY_HOST=0.0.0.0 \
    TALLY_STORE=sqlite:////data/tally.db \
    TALLY_SPOOL=/data/spool
USER 10001
VOLUME /data
EXPOSE 8000
# Without curl in the image: an answer of 200 is health, whatever it says.
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health', timeout=2)"]
CMD ["tally"]
