"""What can be said of an update whose images nobody knows: README.md in this folder.

- `audit.py`: attack, then judge: the whole of `jaxleak attack`. `group.py`: the restarts of one attack.
- `floor.py`: what a right model leaves of an update. `polish.py`: restarts brought there by Gauss-Newton steps.
- `verdict.py`: recovered, ambiguous, unfinished or unexplained.
- `information.py`: the Fisher information of an update about its images, with `counting.py` for many;
  `determinacy.py`: what it says of a finding.
- `hints.py`: hints without an attack; `assumptions.py`: attacks under others; `losses.py`: which loss it was.
- `refit.py`: an attack in float64 without a run directory.
- `risk.py`: how much an update tells, before anyone attacks it; `ranks.py`: which layers of a chain can be solved.
- `report.py`: report.json and the terminal; `page.py`: the page that can be handed on.
"""
