"""Evaluating: what the entry point evaluate costs over generation itself, and what it holds.

Cost: as many different prompts of 20 to 40 tokens, answers of 32 tokens each, greedy, the same
int4 model and number of threads. Bare: a process with an onnxruntime_genai loop that generates
batches of 16, sorted by length; the time of generation alone, and of the process with its start
and the loading of the model. Evaluate: the whole command as it is typed, from start to exit,
scores, traces and report included, into an empty tracking store; no time is taken and no
probabilities are looked at, which would be generation of another kind. That both read and made as
many tokens is checked. Each begins every second round.

Memory: the demo ONNX model and 4 tokens an answer, over few rows and over many, all different.
Peaks are VmHWM of /proc/PID/status, read while the command runs, so this needs Linux: of
evaluate's own process, and of the one that holds the model.
"""

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import batched
from pathlib import Path

import psutil
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from bench import work
from bench.checkpoint import Shape, plain_tokens
from bench.figures import Figure, ratios, show, write
from bench.serving import Bare, is_word
from slmflow import console
from slmflow.served.cores import thread_count
from slmflow.served.template import ChatTemplate
from slmflow.sources import PROJECT_ROOT, LocalModel
