"""Open exports with the packages whose layouts they have, and print as JSON what those see.

    READERS_PYTHON -I tests/export_readers.py inspect|lm-eval FOLDER

Run by tests/test_export.py with a Python that has inspect-ai and lm-eval and need not have evalkit: the two pull in
what evalkit's own environment should not hold. lm-eval has no command that reads results again; what it has for
programs that do is names of files (``lm_eval.utils``), types of their contents (``lm_eval.result_schema``), the table
that its own runs end with (``make_table``), and samples written so that ``datasets`` reads them, as its dataset cards
do.
"""

import json
import sys
from pathlib import Path
from typing import Any


def inspect(folder: Path) -> dict[str, Any]:
    from inspect_ai.analysis import samples_df
    from inspect_ai.log import list_eval_logs, read_eval_log

    (listed,) = list_eval_logs(str(folder))
    header = read_eval_log(listed, header_only=True)  # what "inspect view" lists
    log = read_eval_log(listed)
    assert log.samples is not None
    assert log.results is not None
    assert header.results is not None
    table = samples_df(str(folder))
    scorers = [score.name for score in log.results.scores]
    return {
        "task": listed.task,
        "status": log.status,
        "model": log.eval.model,
        "counted": [header.results.total_samples, header.results.completed_samples],
        "scored": {score.name: [score.scored_samples, score.unscored_samples] for score in header.results.scores},
        "means": {score.name: score.metrics["mean"].value for score in log.results.scores if score.metrics},
        "failed": sorted(sample.id for sample in log.samples if sample.error),
        "samples": {
            sample.id: {
                "target": sample.target,
                "output": sample.output.completion,
                "scores": {name: score.value for name, score in (sample.scores or {}).items()},
            }
            for sample in log.samples
            if not sample.error
        },
        "table": {
            row["id"]: {name: float(row[f"score_{name}"]) for name in scorers}
            for row in table[table["error"] == ""].to_dict("records")
        },
    }


def lm_eval(folder: Path) -> dict[str, Any]:
    from datasets import load_dataset
    from lm_eval import result_schema, utils
    from pydantic import TypeAdapter

    (model,) = folder.iterdir()
    names = [str(path) for path in sorted(model.iterdir())]
    results = json.loads(Path(utils.get_latest_filename(utils.get_results_filenames(names))).read_text())
    TypeAdapter(result_schema.EvalResults).validate_python(results, strict=True)
    samples = {}
    for name in utils.get_sample_results_filenames(names):
        lines = [json.loads(line) for line in Path(name).read_text().splitlines()]
        TypeAdapter(list[result_schema.SampleResult]).validate_python(lines, strict=True)
        rows = load_dataset("json", data_files=name, split="train", cache_dir=str(folder.with_name("cache")))
        for row in rows:
            samples[f"{utils.get_file_task_name(Path(name).name)}/{row['doc']['sample_id']}"] = {
                "target": row["target"],
                "output": row["resps"][0][0],
                "scores": {metric: row[metric] for metric in row["metrics"]},
            }
    return {"model": results["model_name"], "results": results["results"], "table": utils.make_table(results),
            "counted": results["n-samples"], "samples": samples}  # fmt: skip


if __name__ == "__main__":
    print(json.dumps({"inspect": inspect, "lm-eval": lm_eval}[sys.argv[1]](Path(sys.argv[2]))))
