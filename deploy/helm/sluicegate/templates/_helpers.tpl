{{- define "sluicegate.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- define "sluicegate.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "sluicegate.name" . -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "sluicegate.selector" -}}
app.kubernetes.io/name: {{ include "sluicegate.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "sluicegate.labels" -}}
{{ include "sluicegate.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "sluicegate.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "sluicegate.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "sluicegate.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}
{{- end -}}

{{/* Whether the admin plane listens on all addresses of the pod. */}}
{{- define "sluicegate.adminIsOpen" -}}
{{- if .Values.access.tokens -}}true{{- end -}}
{{- end -}}

{{/* The largest number of pods. */}}
{{- define "sluicegate.mostPods" -}}
{{- if .Values.autoscaling.enabled -}}{{ .Values.autoscaling.maxReplicas }}{{- else -}}{{ .Values.replicas }}{{- end -}}
{{- end -}}

{{/* The host names of the admin plane in the cluster: of its Service, and of each pod. */}}
{{- define "sluicegate.adminHosts" -}}
{{- $service := printf "%s-admin" (include "sluicegate.fullname" .) -}}
{{- $namespace := .Release.Namespace -}}
{{- $hosts := .Values.admin.allowedHosts -}}
{{- $names := list $service -}}
{{- range $i := until (int (include "sluicegate.mostPods" .)) -}}
{{- $names = append $names (printf "%s-%d.%s" (include "sluicegate.fullname" $) $i $service) -}}
{{- end -}}
{{- range $names -}}
{{- $hosts = concat $hosts (list . (printf "%s.%s" . $namespace) (printf "%s.%s.svc" . $namespace) (printf "%s.%s.svc.cluster.local" . $namespace)) -}}
{{- end -}}
{{- toJson $hosts -}}
{{- end -}}

{{/* access.tokens of the configuration, as TOML. JSON texts are TOML texts. */}}
{{- define "sluicegate.tokens" -}}
{{- $all := list -}}
{{- range .Values.access.tokens -}}
{{- $models := "" -}}
{{- if .models -}}{{- $models = printf ", models = %s" (toJson .models) -}}{{- end -}}
{{- $all = append $all (printf "{ name = %s, role = %s, file = %s%s }" (toJson .name) (toJson .role) (toJson (printf "/run/secrets/sluicegate/%s" .key)) $models) -}}
{{- end -}}
[{{ join ", " $all }}]
{{- end -}}

{{/* Values that contradict each other. */}}
{{- define "sluicegate.check" -}}
{{- if and .Values.access.tokens (not .Values.access.existingSecret) -}}
{{- fail "access.tokens needs access.existingSecret: the name of the Secret with the tokens" -}}
{{- end -}}
{{- if and .Values.models.volume .Values.models.existingClaim -}}
{{- fail "models.volume and models.existingClaim: set one of them" -}}
{{- end -}}
{{- if .Values.serviceMonitor.enabled -}}
{{- $found := false -}}
{{- range .Values.access.tokens -}}
{{- if eq .name $.Values.serviceMonitor.tokenName -}}{{- $found = true -}}{{- end -}}
{{- end -}}
{{- if not $found -}}
{{- fail (printf "serviceMonitor needs an entry of access.tokens with the name %q and the role viewer" .Values.serviceMonitor.tokenName) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "sluicegate.probe" -}}
{{- if .root.Values.probes.exec -}}
exec:
  command: {{ toJson .command }}
{{- else -}}
httpGet:
  path: {{ .path }}
  port: predictions
  {{- if .root.Values.tls.serverSecret }}
  scheme: HTTPS
  {{- end }}
{{- end }}
{{- range $name, $value := .settings }}
{{ $name }}: {{ $value }}
{{- end }}
{{- end -}}
