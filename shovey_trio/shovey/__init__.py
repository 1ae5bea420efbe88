"""The wing for goiardi's Shovey: knife-shove's REST interface, and nodes that run schob.

Only composition imports a wing; a check removes it from the import graph to be sure (``tools/check.sh``).
"""
