"""The attack: from a shared update to candidates for the private data.

presets.py        the published attacks, as plain data
best.py           which of them fits a network and an update
check.py          which of them make sense against which victim
trial.py          one trial: prepare, start, step, outcome
attacker.py       the labels it reads, the objective it minimises
bounds.py         changes of variables that keep pixels in [0, 1]
candidate.py      what is optimised in place of the private data: start, units, box, priors
objectives.py     the objective's terms and scales
distances.py      how far two gradients are apart
likelihood.py     how likely a defended update is
layer_weights.py  layers that count more or less
labels.py         rules that read labels from an update
priors.py         what images look like
starts.py         where images start
closed_forms.py   images that an update gives away, and what each way needs
analytic.py       one image, from a dense layer
april.py          one image, from the embedding of a vision transformer
spear.py          a batch, from a dense layer with a ReLU behind it
rgap.py           one image, layer by layer through convolutions and dense layers
words.py          words of a batch, from an embedding's rows; nothing is rebuilt
membership.py     how much a record's gradient is in an update
sketch.py         updates as short vectors
layer_equations.py  the equations of one layer, and the inputs that solve them
lane_cond.py      `lax.cond` that works under `vmap`: a branch that no lane wants is skipped
"""
