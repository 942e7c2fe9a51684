"""`jaxleak bench`: restarts per second of jaxleak beside the alternatives, measured in one run.

command.py    the command                 settings.py      what is measured
runner.py     starts workers, asks them in turns           report.py, tables.py   medians, ratios, JSON, tables
plan.py       processes, tasks, what starts together       estimate.py   the time it will take
workers.py    the parent's end of a worker                 protocol.py   the worker's end
worker.py     the variants in JAX: jaxleak's engine, plain_vmap.py, jaxopt (variants.py)
pytorch_loop.py, pytorch_vmap.py   the variants in PyTorch, only ever run in processes of their own
networks/     the models in PyTorch, for these and for tests of parity
doctor.py     what this installation has, and what to mend
machine.py    the machine's own rates     phases.py        parts of a step
steps.py      where the time of a step goes on one core, beside PyTorch's own profile (pytorch_steps.py)
account.py    what a step costs on a GPU, which need not be there (accelerators.py)
"""
