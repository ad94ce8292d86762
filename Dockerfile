# docker build -t ml-mamba .                            PyTorch for the CPU
# docker build -t ml-mamba --build-arg TORCH=cuda .     PyTorch with its CUDA libraries, several GB more
# docker run -p 7860:7860 ml-mamba                      docs/hosting.md has the rest

FROM python:3.11-slim

ARG TORCH=cpu
WORKDIR /app
COPY requirements.txt ./
# The pin torch==… takes …+cpu too, so that the last line leaves it as it is. Triton compiles what launches its kernels.
RUN set -eu; \
    case "$TORCH" in \
        cpu) grep -E '^(torch|torchvision)==' requirements.txt > /tmp/torch.txt; \
             pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu -r /tmp/torch.txt ;; \
        cuda) apt-get update; apt-get install -y --no-install-recommends gcc libc6-dev; rm -rf /var/lib/apt/lists/* ;; \
        *) echo "TORCH is cpu or cuda"; exit 1 ;; \
    esac; \
    pip install --no-cache-dir -r requirements.txt

COPY app.py ./
COPY benchmarks/results benchmarks/results/
COPY checkpoints/tiny checkpoints/tiny/
COPY checkpoints/twin checkpoints/twin/
COPY examples examples/
COPY mlmamba mlmamba/
COPY page page/
COPY visualize visualize/

# The folder is made here so that a volume mounted on it belongs to the user.
RUN useradd --create-home --uid 1000 user && install -d -o user -g user /home/user/.cache /home/user/.cache/huggingface
USER 1000
ENV GRADIO_SERVER_NAME=0.0.0.0 GRADIO_SERVER_PORT=7860 PYTHONUNBUFFERED=1
EXPOSE 7860

# Needs no login. The page answers while the model is still being loaded.
HEALTHCHECK --interval=30s --timeout=10s --start-period=2m CMD ["python", "-c", "\
import http.client, os, sys; \
page = http.client.HTTPConnection('127.0.0.1', int(os.environ['GRADIO_SERVER_PORT']), timeout=9); \
page.request('GET', '/gradio_api/app_id'); \
sys.exit(page.getresponse().status != 200)"]

ENTRYPOINT ["python", "app.py"]
