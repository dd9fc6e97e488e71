"""What every domain shares besides mathematics: configs, recipes, runs, `reproduce`, the command line.

Needs the extra `gen-core[harness]`. Nothing here imports torch before it is needed.
"""
