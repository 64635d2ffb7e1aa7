"""What this machine can do, measured: memory, disk, arithmetic, and a model beside these ceilings.

Everything that reads /proc and /sys takes a Tree, so that tests can make up a board.
"""
