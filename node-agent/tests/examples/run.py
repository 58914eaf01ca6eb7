# SPDX-License-Identifier: Apache-2.0
"""Runs one example as a person does, and writes its answers as JSON for the test to compare.

Usage: run.py ANSWERS.json EXAMPLE URL...

A notebook's code cells run one after the other, and what the last line of each is worth is printed; a script runs as a
script. The answers are the variables with these names, tables of whatever kind the example works with; a point in time is
its number of microseconds since 1970, and one without a time zone is refused, since nobody could know when that was.
"""

import ast
import datetime
import json
import os
import pathlib
import runpy
import sys

NAMES = ["top_programs", "tcplife", "top_talkers", "handshakes", "rss", "faults", "waits"]
EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)


def run_notebook(path):
    variables = {"__name__": "__main__"}
    for cell in json.loads(pathlib.Path(path).read_text())["cells"]:
        if cell["cell_type"] != "code":
            continue
        body = ast.parse("".join(cell["source"]), path).body
        last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
        exec(compile(ast.Module(body, []), path, "exec"), variables)
        if last:
            print(eval(compile(ast.Expression(last.value), path, "eval"), variables))
    return variables


def rows(table):
    if hasattr(table, "toArrow"):  # Spark
        table = table.toArrow()
    if hasattr(table, "to_arrow_table"):  # DuckDB
        table = table.to_arrow_table()
    return table.to_dicts() if hasattr(table, "to_dicts") else table.to_pylist()


def plain(value):
    if isinstance(value, datetime.datetime):
        return (value - EPOCH) // datetime.timedelta(microseconds=1)
    if hasattr(value, "to_integral_value"):  # DuckDB adds up to numbers of 128 bits, which Arrow has as decimals
        assert value == value.to_integral_value(), value
        return int(value)
    return value


answers, example, *urls = sys.argv[1:]
sys.path.insert(0, os.getcwd())
os.environ["SESSION"] = urls[0]
sys.argv = [example, *urls]
found = run_notebook(example) if example.endswith(".ipynb") else runpy.run_path(example, run_name="__main__")
tables = {name: [{column: plain(value) for column, value in row.items()} for row in rows(found[name])] for name in NAMES}
pathlib.Path(answers).write_text(json.dumps(tables))
