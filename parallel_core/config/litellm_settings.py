"""The settings of the installed litellm, and the lists of those that a run of a file ignores.

Only the functions import litellm, since the import takes seconds.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import NoneType, SimpleNamespace, UnionType
from typing import (
    Annotated,
    Any,
    Final,
    TypeAlias,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

_DATA: Final = (NoneType, bool, int, float, str, list, tuple, dict, set)

Types: TypeAlias = frozenset[Any]
"""The types that a setting may have, without None. Empty if litellm does not declare them."""

WRITES_LOGS: Final = frozenset(
    {
        *("debug_level", "json_logs", "log_client_error_tracebacks", "log_raw_request_response"),
        *("set_verbose", "suppress_debug_info"),
    }
)
"""Settings of litellm's module and Router that make it write messages or advice to logs."""

LOADS_CODE: Final = frozenset(
    {"custom_provider_map", "plugins", "post_call_rules", "pre_call_rules"}
)
"""Settings of litellm's module and Router that name Python code."""

# Names of litellm_settings. A test reads litellm's source: a name that only the proxy server and
# its integrations read must be listed here, or be passed to litellm for a stated reason.
PROXY_ONLY: Final = frozenset((
    # Callbacks, and settings that only callbacks read.
    "argilla_batch_size", "argilla_transformation_object", "audit_log_callbacks",
    "aws_sqs_callback_params", "batch_line_item_callbacks", "callback_settings", "callbacks",
    "cold_storage_custom_logger", "custom_prometheus_metadata_labels", "custom_prometheus_tags",
    "datadog_llm_observability_params", "datadog_params", "datadog_use_v1",
    "disable_end_user_cost_tracking_prometheus_only", "dynamodb_table_name",
    "enable_end_user_cost_tracking_prometheus_only", "extra_spend_tag_headers",
    "failure_callback", "gcs_pub_sub_use_v1", "generic_api_use_v1", "generic_logger_headers",
    "input_callback", "langfuse_default_tags", "langfuse_enable_update_trace_keys",
    "langsmith_batch_size", "newrelic_params", "otel_tenant_destination_mode", "pointfive_params",
    "prometheus_deployment_and_latency_caller_identity",
    "prometheus_emit_input_sequence_length_label", "prometheus_emit_rate_limit_labels",
    "prometheus_emit_stream_label", "prometheus_end_user_metrics_cleanup_interval_seconds",
    "prometheus_end_user_metrics_max_series_per_metric",
    "prometheus_end_user_metrics_ttl_seconds", "prometheus_exclude_labels",
    "prometheus_exclude_metrics", "prometheus_initialize_budget_metrics",
    "prometheus_latency_buckets", "prometheus_metrics_cleanup_interval_seconds",
    "prometheus_metrics_config", "prometheus_metrics_max_series_per_metric",
    "prometheus_metrics_ttl_seconds", "prometheus_user_budget_label_include_email_alias",
    "s3_audit_callback_params", "s3_callback_params", "service_callback",
    "standard_logging_payload_excluded_fields", "success_callback", "zerobus_params",
    # The cache.
    "cache", "cache_params", "caching", "caching_with_models", "default_in_memory_ttl",
    "default_redis_batch_cache_expiry", "default_redis_ttl",
    "enable_caching_on_provider_specific_optional_params", "enable_redis_auth_cache",
    "force_redis_hash_tag_grouping",
    # Guardrails and moderation.
    "azure_content_safety_params", "banned_keywords_list", "blocked_user_list",
    "google_moderation_confidence_threshold", "guardrail_name_config_map", "guardrails",
    "llamaguard_model_name", "llamaguard_unsafe_content_categories", "llm_guard_mode",
    "openai_moderations_model_name", "output_parse_pii", "presidio_ad_hoc_recognizers",
    "presidio_logging_only", "prompt_injection_params", "skip_system_message_in_guardrail",
    "skip_tool_message_in_guardrail",
    # Users, teams, their keys and budgets.
    "add_user_information_to_llm_headers", "apply_search_free_tier",
    "block_requests_for_models_without_pricing", "budget_duration",
    "budget_exceeded_throttle_percentage", "budget_reset_time", "budget_rollover",
    "default_internal_user_params", "default_key_generate_params",
    "default_key_max_budget_alert_emails", "default_max_internal_user_budget",
    "default_soft_budget", "default_team_params", "default_team_settings",
    "enable_key_alias_format_validation", "internal_user_budget_duration", "key_alias_pattern",
    "key_generation_settings", "log_auth_failure_key_identity", "max_end_user_budget",
    "max_end_user_budget_id", "max_internal_user_budget", "max_ui_session_budget",
    "max_user_budget", "overwrite_user_with_key_hash", "personal_key_model_access_from_teams",
    "priority_reservation", "priority_reservation_settings", "scim_admin_group",
    "scim_upsert_user", "store_audit_logs", "upperbound_key_generate_params",
    "validate_end_user_id_in_db",
    # Pages and endpoints of the server.
    "agent_search_embedding_model", "allow_dynamic_callback_disabling",
    "anthropic_sse_ping_interval_seconds", "autorouter_presets_url",
    "enable_loadbalancing_on_batch_endpoints", "enable_model_config_credential_overrides",
    "forward_traceparent_to_llm_provider", "global_prompt_directory", "mcp_aliases",
    "mcp_semantic_tool_filter", "mcp_tool_search", "model_cost_map_url", "model_group_settings",
    "prompt_name_config_map", "public_agent_groups", "public_mcp_hub_strict_whitelist",
    "public_mcp_servers", "public_model_groups", "public_model_groups_links",
    "public_skills_index", "require_auth_for_metrics_endpoint", "require_managed_files",
    "responses", "skill_search_embedding_model", "sse_keepalive_ping_interval_seconds",
    "strip_anthropic_total_tokens", "suppress_startup_output", "vector_store_index_registry",
    "websearch_interception_params",
))  # fmt: skip
"""Settings of ``litellm_settings`` that only the proxy server uses."""


def module_settings() -> dict[str, Types]:
    """Return the variables of the module ``litellm``, which ``litellm_settings`` may set."""
    import litellm

    values: dict[str, Any] = dict(vars(litellm))
    annotations = cast("dict[str, Any]", getattr(litellm, "__annotations__", {}))
    names = {name for name in (*values, *annotations) if not name.startswith("_")}
    return {
        name: _types_of_variable(annotations.get(name), values.get(name), values)
        for name in names
        if name in annotations or isinstance(values[name], _DATA)
    }


def router_settings() -> dict[str, Types]:
    """Return the arguments of ``litellm.Router`` that ``router_settings`` may have."""
    from litellm import constants
    from litellm.router import Router

    # These have their own section, or are objects that the proxy server makes.
    not_in_section = getattr(constants, "ROUTER_SETTINGS_MANAGED_OUTSIDE_CONFIG", frozenset[str]())
    parameters = inspect.signature(cast("Any", Router).__init__).parameters
    return {
        name: types_of(parameter.annotation)
        for name, parameter in parameters.items()
        if name not in {"self", "model_list", *not_in_section}
    }


def deployment_parameters() -> dict[str, Types]:
    """Return the ``litellm_params`` that litellm declares. A deployment may have others as well."""
    from litellm.types.router import LiteLLM_Params

    fields = cast("Mapping[str, Any]", LiteLLM_Params.model_fields)
    return {name: types_of(field.annotation) for name, field in fields.items()}


def is_number(types: Types) -> bool:
    """Return True if a setting of these types must be a number."""
    return bool(types) and types <= {int, float}


def is_text(types: Types) -> bool:
    """Return True if a setting of these types may be a text, but not a number or a boolean."""
    return str in types and not types & {bool, int, float, object, Any}


def types_of(annotation: Any) -> Types:
    """Return the types that an annotation allows, without None."""
    if annotation is inspect.Parameter.empty:
        return frozenset()
    if get_origin(annotation) in (Union, UnionType):
        return frozenset(kind for part in get_args(annotation) for kind in types_of(part))
    if get_origin(annotation) is Annotated:
        return types_of(get_args(annotation)[0])
    return frozenset({annotation} - {None, NoneType})


def _types_of_variable(annotation: Any, value: object, names: dict[str, Any]) -> Types:
    if annotation is None:
        return frozenset({type(value)} - {NoneType})
    try:
        hints = get_type_hints(SimpleNamespace(__annotations__={"it": annotation}), names)
    except (NameError, TypeError):  # litellm imports the name only for type checkers
        return frozenset()
    return types_of(hints["it"])
