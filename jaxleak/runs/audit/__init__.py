"""What can be said of an update whose images nobody knows.

- `audit.py`: attack, then judge: the whole of `jaxleak attack`.
- `floor.py`: what a right model leaves of an update.
- `verdict.py`: recovered, ambiguous, unfinished or unexplained.
- `information.py`: the Fisher information of an update about its images; `determinacy.py`: what it says of a finding.
- `hints.py`: why nothing explains an update; `refit.py`: attacks again, in float64, under other assumptions.
- `risk.py`: how much an update tells, before anyone attacks it.
- `report.py`: report.json and the terminal.
"""
