"""What the tests of the Python binding share: the library beside $MOEKIT, the package of this tree, sizes, arrays."""
import array
import os
import random
import sys

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
LIBRARY = os.path.join(os.path.dirname(os.path.abspath(os.environ["MOEKIT"])), "libmoekit.so")
os.environ["MOEKIT_LIBRARY"] = LIBRARY
sys.path.insert(0, os.path.join(TOP, "python"))

SEED = int(os.environ.get("MOEKIT_TEST_SEED", random.randrange(2**31)))
SIZES = {"d_model": 8, "num_experts": 4, "top_k": 2, "expert_hidden_size": 16, "init_std": 0.4}
T, D = 12, 8


def matrix(rows, columns, code="f", draw=random.Random(SEED).gauss):
    """Of N(0, 1), with a buffer of two dimensions."""
    numbers = array.array(code, [draw(0, 1) if code in "fd" else 0 for _ in range(rows * columns)])
    return memoryview(numbers).cast("B").cast(code, [rows, columns])
