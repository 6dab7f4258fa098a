# A front door over CMake. `make help` lists what is behind it.
MOEKIT := build/release/moekit
DEMO := build/demo/moekit
DEMO_CONFIG := configs/demo.yaml
DEMO_RUN := runs/demo
DEMO_PROMPT := And it came to pass

.PHONY: help build demo check check-arm check-isa fuzz bench bench-peers bench-gpu format clean

help:
	@echo 'make build      the libraries and the command, in build/release, and build/tests/golden'
	@echo 'make demo       from nothing to a trained, measured and explained language model: runs/demo/report.html;'
	@echo '                its command, without CUDA, is build/demo/moekit'
	@echo 'make check      all tests and checks; the last line is "N passed, N failed"'
	@echo 'make check-arm  kernels and layer on 64-bit Arm: cross-compiled, tested under qemu-user'
	@echo 'make check-isa  kernels and layer on processors without AVX2, without AVX-512: under qemu-user'
	@echo 'make fuzz       readers of foreign files, and calls in any order, under libFuzzer, 60 s each'
	@echo 'make bench      speed of the kernels and of the layer on this machine'
	@echo 'make bench-peers  the layer beside oneDNN, OpenBLAS, PyTorch, ggml and others found here: docs/peers.md'
	@echo 'make bench-gpu  the CUDA kernels, checked and timed on an H100 (needs nvcc 12.5 or newer)'
	@echo 'make format     clang-format over the tree'
	@echo 'make clean      removes build/'

build:
	@scripts/install-deps.sh build
	@cmake --preset release --log-level=WARNING >/dev/null
	@cmake --build --preset release --target moekit-cli golden

demo:
	@scripts/install-deps.sh demo
	@cmake --preset demo --log-level=WARNING >/dev/null
	@cmake --build --preset demo --target moekit-cli
	@scripts/get-kjv.sh
	$(DEMO) train $(DEMO_CONFIG) --run $(DEMO_RUN) --move-old
	$(DEMO) eval --run $(DEMO_RUN)
	$(DEMO) generate --run $(DEMO_RUN) --prompt '$(DEMO_PROMPT)'
	$(DEMO) report --run $(DEMO_RUN)

check:
	@scripts/run-tests.sh

check-arm:
	@scripts/check-arm.sh

check-isa:
	@scripts/check-isa.sh

fuzz:
	@scripts/install-deps.sh check
	@cmake --preset fuzz >/dev/null && cmake --build --preset fuzz
	@scripts/fuzz.sh 60

bench: build
	$(MOEKIT) bench

# $$MOEKIT_PYTHON, else python3, needs numpy; torch, transformers, kt-kernel and ggml (llama-cpp-python, or in
# $$GGML_FOLDER) are peers where it has them.
bench-peers: build
	@cmake --build --preset release --target peers
	python3 bench/peers/bench_peers.py --build build/release --page

bench-gpu:
	@scripts/install-deps.sh build
	@cmake --preset release --log-level=WARNING >/dev/null
	@cmake --build --preset release --target cuda
	build/release/gpu/check_moe
	build/release/gpu/bench_moe
	build/release/gpu/bench_decode

format:
	@scripts/check-format.sh --fix

clean:
	rm -rf build
