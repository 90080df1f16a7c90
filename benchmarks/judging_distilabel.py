"""distilabel on the same server and pairs, to be run in its own environment: `python judging_distilabel.py URL FILE`.

FILE holds one pair a line, as JSON: instruction, generations (two). Its closest equivalent of a judged pair is the task
UltraFeedback, which has a model rate both responses in one call; it is run on both orders, so that both sides make the
same number of calls. OpenAILLM sends a batch's calls at once and waits for all of them, so that the size of the batch
is its calls in flight: `--batch` of them, in `--replicas` processes.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from distilabel.models import OpenAILLM
from distilabel.pipeline import Pipeline
from distilabel.steps import LoadDataFromDicts
from distilabel.steps.base import StepResources
from distilabel.steps.tasks import UltraFeedback


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("file", type=Path)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--replicas", type=int, default=1)
    arguments = parser.parse_args()
    pairs = [json.loads(line) for line in arguments.file.read_text().splitlines()]
    rows = [
        {"instruction": pair["instruction"], "generations": order}
        for pair in pairs
        for order in (pair["generations"], pair["generations"][::-1])
    ]
    with tempfile.TemporaryDirectory() as cache:
        with Pipeline(name="judging", cache_dir=cache) as pipeline:
            load = LoadDataFromDicts(data=rows, batch_size=arguments.batch)
            llm = OpenAILLM(
                base_url=arguments.url,
                api_key="none",
                model="judge",
                generation_kwargs={"temperature": 0.0, "max_new_tokens": 512},
            )
            rate = UltraFeedback(
                llm=llm, input_batch_size=arguments.batch, resources=StepResources(replicas=arguments.replicas)
            )
            load >> rate
        start = time.perf_counter()
        found = pipeline.run(use_cache=False)
        seconds = time.perf_counter() - start
    ratings = found["default"]["train"]["ratings"]
    read = sum(one is not None and None not in one for one in ratings)
    print(json.dumps({"calls": len(rows), "seconds": seconds, "read": read}))


if __name__ == "__main__":
    main()
