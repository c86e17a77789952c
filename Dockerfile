# One image for every Spark and Python role: master, worker, the layers, the producer. Debian's Python is 3.11, the
# Spark images' 3.10 is too old. Packages and jars come in at build time, checked; a running container fetches nothing.
#     docker compose build            or: docker build --target highwater -t highwater:1.0 .
# The base is an argument, so that a mirror or a digest can take its place.
ARG BASE_IMAGE=debian:bookworm-slim
FROM ${BASE_IMAGE} AS highwater

SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# Versions of Debian's packages come with the base image's release; pinning them breaks the build at each security
# update.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends openjdk-17-jre-headless procps python3 python3-venv tini \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --create-home --shell /bin/bash highwater

WORKDIR /opt/highwater
# Two arenas instead of eight per core: glibc would keep some 100 MB per process for threads that allocate little.
ENV PATH=/opt/venv/bin:$PATH \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    MALLOC_ARENA_MAX=2

# What changes rarely comes first: packages, then jars, then the code.
COPY requirements.lock requirements-cassandra.lock ./
RUN python3 -m venv /opt/venv && pip install --require-hashes -r requirements.lock -r requirements-cassandra.lock

COPY engine/__init__.py ./engine/
COPY engine/runtime/__init__.py engine/runtime/envfile.py ./engine/runtime/
COPY stack ./stack
RUN python -m stack jars --only spark monitoring && rm -rf .cache

COPY conf ./conf
COPY hadoop.env ./
COPY web ./web
COPY monitoring ./monitoring
COPY domains ./domains
COPY engine ./engine
COPY *.py ./
# spark-submit and pyspark find the master, the jars and this Python without an option; Spark 4 wants a folder
# `artifacts` in the current one. A checkout made under umask 027 has files that only their owner may read.
RUN spark_home=$(python -c 'import importlib.util as u; print(u.find_spec("pyspark").submodule_search_locations[0])') \
    && ln -s "$spark_home" /opt/spark \
    && python -m stack.config container /opt/highwater/conf/spark \
    && chmod -R a+rX stack conf hadoop.env web monitoring domains engine ./*.py \
    && install -d -o highwater -g highwater artifacts /home/highwater/work
ENV SPARK_HOME=/opt/spark \
    SPARK_CONF_DIR=/opt/highwater/conf/spark \
    SPARK_WORKER_DIR=/home/highwater/work \
    SPARK_NO_DAEMONIZE=1 \
    PYSPARK_PYTHON=/opt/venv/bin/python

USER highwater
ENTRYPOINT ["tini", "--"]
CMD ["python", "producer.py", "--help"]

# The same with JupyterLab, for the profile notebook; the notebooks themselves are mounted.
FROM highwater AS notebook
USER root
COPY requirements-notebook.lock ./
RUN pip install --require-hashes -r requirements-notebook.lock
USER highwater
WORKDIR /opt/highwater/notebooks
CMD ["jupyter", "lab", "--ip=0.0.0.0", "--port=8888", "--no-browser"]
