"""Many workers on one sweep, by Ray.

driver.py     starts workers, takes what they finish
scheduler.py  which worker runs which trials, and what is done when one is lost
worker.py     runs them
"""
