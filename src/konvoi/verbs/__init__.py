"""What a person does with a job: each verb is a function, and a command of the same name."""
