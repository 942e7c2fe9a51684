"""The threat model: private data, the client's computation of its update, and defences.

victim.py         one sweep's private data, network and client, and what the attacker knows
private.py        ... private data
network.py        ... network, and the units of its input
sharing.py        ... client, defences, or a given update
validate.py       ... what is refused
from_dataset.py   ... made of a data set's images
client.py         local steps, and the mean over clients
optimizers.py     ... their optimisers, as torch's
loss.py           losses, their targets and what shows of these
observe.py        gradient, logits and BatchNorm statistics of one pass
chain.py          networks whose layers stand one after the other
defences.py       defences by name, one after the other
defence.py        ... what each has
noise.py          ... noise, and a largest norm
pruning.py        ... entries set to zero
rounding.py       ... fewer bits
precode.py        ... noise within the network
own_defence.py    ... a function of one's own
patches.py        what an attacker learned of patches of images
training.py       networks trained before they are attacked
checkpoint.py     ... kept beside the run
own_update.py     an update of one's own, from a file
own_embedding.py  ... the gradient of its tokens
"""
