"""`tracedjobs demo`: a real import that is stopped, killed and resumed, and then checked.

`flights` is the job, `data` fetches what it reads, `acts` runs it in processes of its own, `check`
compares what came out with the file, and `story` is the whole. Nothing here prints.
"""
