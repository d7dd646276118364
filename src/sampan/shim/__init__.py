"""The zygote, and the monitor that it forks for each pod."""
