"""need.py: what a test cannot do without.

A test, or a bench, that needs more than the standard library goes on under $MOEKIT_PYTHON where that is set, and is
skipped by name (exit code 77) where the modules are not installed there.
"""
import importlib
import os
import sys


def modules(*names):
    """Before anything else that may be missing is imported."""
    python = os.environ.get("MOEKIT_PYTHON")
    if python and os.environ.get("MOEKIT_PYTHON_USED") != python:
        os.environ["MOEKIT_PYTHON_USED"] = python
        os.execvp(python, [python, *sys.argv])
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            print(f"skipped: {os.path.relpath(sys.argv[0])}: no module named '{error.name}' in {sys.executable}")
            sys.exit(77)
