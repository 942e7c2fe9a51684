"""The attack: from a shared update to candidates for the private images.

presets.py        the published attacks, as plain data
trial.py          one trial: prepare, start, step, outcome
attacker.py       the labels it reads, the objective it minimises
objectives.py     ... that objective's terms and scales
distances.py      how far two gradients are apart
layer_weights.py  layers that count more or less
labels.py         rules that read labels from an update
priors.py         what images look like
starts.py         where candidates start
analytic.py       images read from a dense layer's gradient
lane_cond.py      what few lanes need is not computed for all
"""
