"""SageMaker's side of a training job: its requests, its evaluation statuses, its actions."""
