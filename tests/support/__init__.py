"""What tests share: toy tasks, what goes wrong in them, a run that is watched, processes to run it in, runs compared.

``probe.train(job)`` runs one training described by a plain dict and returns plain data, so the same job can run in this
process, on every member of a ``Team`` of ranks that stays alive between jobs, or in a ``Child`` that may be killed.
"""
