"""Every limit and interval, with its unit in its name. Read once at start, never changed."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from reconciler.core.parse import ParseLimits


class Settings(BaseSettings):
    """From the command line, then `GPUAAS_*` variables, then `gpuaas.toml`, then these defaults."""

    model_config = SettingsConfigDict(
        env_prefix="GPUAAS_", toml_file="gpuaas.toml", frozen=True, extra="forbid"
    )

    state_dir: Path = Path("/var/lib/gpuaas")
    repo: str = "."
    branch: str = "main"
    git_known_hosts: Path | None = None
    git_ssh_key: Path | None = None
    environment: str = ""
    listen: str = "127.0.0.1:8470"
    allow_remote_read: bool = False
    allowed_hosts: tuple[str, ...] = ()

    poll_interval_s: float = Field(default=30.0, gt=0)
    resync_interval_s: float = Field(default=15.0, gt=0)
    wakeup_interval_s: float = Field(default=0.5, gt=0)
    fetch_timeout_s: float = Field(default=60.0, gt=0)
    registry_timeout_s: float = Field(default=20.0, gt=0)
    lease_ttl_s: float = Field(default=15.0, gt=0)
    node_offline_after_s: float = Field(default=45.0, gt=0)
    task_ttl_s: float = Field(default=120.0, gt=0)
    join_token_ttl_s: float = Field(default=3600.0, gt=0)
    long_poll_s: float = Field(default=25.0, gt=0)
    report_age_max_s: float = Field(default=60.0, gt=0)
    task_recheck_interval_s: float = Field(default=0.5, gt=0)
    pass_age_max_s: float = Field(default=300.0, gt=0)

    join_failures_max: int = Field(default=10, gt=0)
    join_failures_window_s: float = Field(default=60.0, gt=0)
    webhook_bytes_max: int = Field(default=1024 * 1024, gt=0)
    body_timeout_s: float = Field(default=30.0, gt=0)
    server_threads_max: int = Field(default=12, gt=0)

    file_bytes_max: int = Field(default=1024 * 1024, gt=0)
    files_max: int = Field(default=200_000, gt=0)
    snapshot_bytes_max: int = Field(default=512 * 1024 * 1024, gt=0)
    documents_per_file_max: int = Field(default=2_000, gt=0)
    yaml_depth_max: int = Field(default=40, gt=0)
    manifest_bytes_max: int = Field(default=8 * 1024 * 1024, gt=0)
    registry_descriptors_max: int = Field(default=512, gt=0)
    registry_cache_entries_max: int = Field(default=50_000, gt=0)

    @property
    def parse_limits(self) -> ParseLimits:
        return ParseLimits(
            file_bytes_max=self.file_bytes_max,
            documents_per_file_max=self.documents_per_file_max,
            yaml_depth_max=self.yaml_depth_max,
        )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings, env_settings, TomlConfigSettingsSource(settings_cls))
