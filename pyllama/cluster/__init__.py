"""Several boards as one: rows of every matrix dealt to ranks, each on its board, that gather what they have computed.

MPI (mpi4py over Open MPI) starts the ranks and carries what they say to each other. docs/cluster.md has the rest.
"""
