"""Continuable jobs on the queue that is there: one module a queue, each an extra of its own.

None is imported before it is named: `from tracedjobs.queues.celery import continuable`.
"""
