"""The safetensors package of Python as a second opinion for test_safetensors_peer.c.

safetensors_peer.py probe FILE   does nothing
safetensors_peer.py list FILE    prints each tensor of FILE: name, dtype, shape, bytes in hex
safetensors_peer.py write FILE   writes tensors of many types to FILE, then prints them the same way
Exits 77 where the packages are missing.
"""
import sys

try:
    import numpy
    import safetensors
    import safetensors.numpy
except ImportError as missing:
    print(missing)
    sys.exit(77)


def show(path):
    with open(path, "rb") as file:
        tensors = safetensors.deserialize(file.read())
    for name, info in sorted(tensors):
        shape = ",".join(map(str, info["shape"]))
        print(f"{name} {info['dtype']} [{shape}] {bytes(info['data']).hex()}")
    with safetensors.safe_open(path, framework="numpy") as file:
        for key, value in sorted((file.metadata() or {}).items()):
            print(f"{key}={value}")


def write(path):
    random = numpy.random.default_rng(5)
    types = "float64 float32 float16 int64 int32 int16 int8 uint64 uint32 uint16 uint8 bool".split()
    tensors = {f"layer.{i}.{name}": random.integers(0, 2, (3, i)).astype(name) for i, name in enumerate(types)}
    tensors["scalar"] = numpy.array(random.normal(), dtype="float32")
    tensors["weight"] = random.normal(size=(5, 7)).astype("float32")
    safetensors.numpy.save_file(tensors, path, metadata={"format": "np", "caf\u00e9": "\u20ac \"quoted\""})


if sys.argv[1] == "write":
    write(sys.argv[2])
if sys.argv[1] != "probe":
    show(sys.argv[2])
