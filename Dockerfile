# A server on a CPU, not as root; works with a read-only file system:
#   docker build -t anytime-serve .
#   docker run --read-only --tmpfs /tmp -p 8000:8000 anytime-serve
#   docker run --read-only --tmpfs /tmp -p 8000:8000 -v "$PWD/runs/mine:/model:ro" anytime-serve mine=/model --deadline 50ms
FROM python:3.12-slim

COPY . /source
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu "/source[serve]" && rm -rf /source
RUN useradd --uid 10001 --no-create-home anytime

USER 10001
ENV HOME=/tmp PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --start-period=60s CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/v2/health/ready')"]
ENTRYPOINT ["anytime", "serve", "--host", "0.0.0.0"]
CMD ["anytimenet_cifar10"]
