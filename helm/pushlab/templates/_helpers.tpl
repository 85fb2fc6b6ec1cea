{{/* Names, labels, and what every pod of the chart has in common. Components are passed as (dict "root" $ "component" "nats" …). */}}

{{- define "pushlab.base" -}}
{{- default .Release.Name .Values.fullnameOverride | trunc 36 | trimSuffix "-" -}}
{{- end }}

{{/* Name of the pods' objects; with a role in split mode. */}}
{{- define "pushlab.pods" -}}{{ include "pushlab.base" . }}-pushlab{{- end }}

{{/* The Service of pods that serve a role: (list $ "api"). */}}
{{- define "pushlab.service" -}}
{{- $root := index . 0 -}}
{{ include "pushlab.pods" $root }}{{ if eq $root.Values.pods.mode "split" }}-{{ index . 1 }}{{ end }}
{{- end }}

{{/* The full name of their headless Service: one address per ready pod. */}}
{{- define "pushlab.addresses" -}}
{{- $root := index . 0 -}}
{{ include "pushlab.service" . }}-headless.{{ $root.Release.Namespace }}.svc.{{ $root.Values.clusterDomain }}
{{- end }}

{{- define "pushlab.selector" -}}
app.kubernetes.io/name: pushlab
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "pushlab.labels" -}}
{{ include "pushlab.selector" . }}
app.kubernetes.io/part-of: pushlab
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version }}
{{- end }}

{{- define "pushlab.image" -}}
{{- if or (eq (toString .tag) "latest") (eq (toString .tag) "") -}}
{{- fail (printf "image %s: name a tag that stays what it is, not %q" .repository (toString .tag)) -}}
{{- end -}}
{{ .repository }}:{{ .tag }}
{{- end }}

{{/* Pod Security "restricted": (dict "user" 65532). */}}
{{- define "pushlab.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ .user }}
runAsGroup: {{ .user }}
fsGroup: {{ .user }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}
{{- define "pushlab.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* Where: (dict "root" $ "values" .Values.nats). */}}
{{- define "pushlab.placement" -}}
{{- with .values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.prefer }}
affinity:
  nodeAffinity:
    preferredDuringSchedulingIgnoredDuringExecution:
      - weight: 100
        preference:
          matchExpressions:
            - {key: {{ $.root.Values.placement.label }}, operator: In, values: {{ toJson . }}}
{{- end }}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "pushlab.secret" -}}
{{- default (printf "%s-secrets" (include "pushlab.base" .)) .Values.secrets.existingSecret -}}
{{- end }}

{{/* Environment of whoever needs the database or the broker. */}}
{{- define "pushlab.connections" -}}
{{- if .Values.mysql.enabled }}
- name: MYSQL_PASSWORD
  valueFrom: {secretKeyRef: {name: {{ include "pushlab.secret" . }}, key: mysql-password}}
- name: DATABASE_URL
  value: mysql://{{ .Values.mysql.user }}:$(MYSQL_PASSWORD)@{{ include "pushlab.base" . }}-mysql:3306/{{ .Values.mysql.database }}
{{- else }}
- name: DATABASE_URL
  valueFrom: {secretKeyRef: {name: {{ .Values.externalDatabase.existingSecret }}, key: {{ .Values.externalDatabase.key }}}}
{{- end }}
{{- if .Values.nats.enabled }}
- name: NATS_PASSWORD
  valueFrom: {secretKeyRef: {name: {{ include "pushlab.secret" . }}, key: nats-password}}
- name: NATS_URL
  value: nats://pushlab:$(NATS_PASSWORD)@{{ include "pushlab.base" . }}-nats:4222
{{- else if .Values.externalNats.existingSecret }}
- name: NATS_URL
  valueFrom: {secretKeyRef: {name: {{ .Values.externalNats.existingSecret }}, key: {{ .Values.externalNats.key }}}}
{{- else }}
- name: NATS_URL
  value: {{ .Values.externalNats.url | quote }}
{{- end }}
{{- end }}

{{/* A pause before SIGTERM: the kubelet's own from 1.30 on, else the image's sleep. */}}
{{- define "pushlab.preStop" -}}
{{- if semverCompare ">=1.30.0-0" .root.Capabilities.KubeVersion.Version }}
preStop: {sleep: {seconds: {{ .seconds }}}}
{{- else }}
preStop: {exec: {command: [sleep, {{ .seconds | quote }}]}}
{{- end }}
{{- end }}

{{/* preStop + refusing + ending streams + the pod's own margin (10 s), likes under way (6 s), broker (2 s), and 2 s to spare. */}}
{{- define "pushlab.terminationGrace" -}}
{{- with .Values.pods.drain }}{{ add .preStopSeconds .graceSeconds .windowSeconds 20 }}{{ end -}}
{{- end }}

{{/* One and a half heart-beats, in whole seconds, at least 2. */}}
{{- define "pushlab.silence" -}}
{{- max 2 (div (mul .Values.pods.heartbeatSeconds 3) 2) -}}
{{- end }}

{{/* Roles that have pods of their own: a list in JSON of (component, roles, replicas). */}}
{{- define "pushlab.deployments" -}}
{{- if eq .Values.pods.mode "combined" -}}
{{- list (dict "component" "app" "name" (include "pushlab.pods" .) "roles" "api,sse,stomp" "replicas" .Values.pods.replicas) | toJson -}}
{{- else -}}
{{- $list := list -}}
{{- range $role := list "api" "sse" "stomp" -}}
{{- $list = append $list (dict "component" $role "name" (printf "%s-%s" (include "pushlab.pods" $) $role) "roles" $role "replicas" (index $.Values.pods.split $role "replicas")) -}}
{{- end -}}
{{- toJson $list -}}
{{- end -}}
{{- end }}
