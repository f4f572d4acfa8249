# user_data.py puts the interpreter, the shutdown timer and the run's own values (RUN_ID, GROUP, …) ahead of this, and
# replaces each @NAME@ by a name that another program uses too: the supervisor, the trainer's image, the policies, or
# the readers of the run record.
#
# The timer is armed before anything can fail: the machine is off at the run's expiry, whatever else happens. Every path
# below ends in `finish`, which ships the output if the boot failed, and switches the machine off.

# cloud-init writes all output of this script there, and to the console.
LOG=/var/log/cloud-init-output.log
IMDS=${AWS_EC2_METADATA_SERVICE_ENDPOINT:-http://169.254.169.254}
INSTANCE=unknown TYPE=unknown ZONE=unknown MARKET=unknown FAILURE=
STARTED=$(date -u +%FT%TZ) DISK=/var/lib/mtl-cloud
export HOME=/root AWS_DEFAULT_REGION=$REGION AWS_RETRY_MODE=standard AWS_MAX_ATTEMPTS=5
export AWS_STS_REGIONAL_ENDPOINTS=regional AWS_PAGER=

# Never to standard output, which a caller may be reading into a variable.
say() { echo "mtl-cloud $(date -u +%FT%TZ): $*" >&2; }

# --- the run record ---

# The message keeps only what needs no escape in JSON, printable ASCII without " and \: the machine may have no JSON tool.
record() {
  local phase=$1 message now
  message=$(tr -cd ' !#-[]-~' <<<"${2:-}")
  now=$(date -u +%FT%TZ)
  timeout 60 aws s3 cp --only-show-errors - "$STORAGE/@BOOT_KEY@" <<JSON
@BOOT_RECORD@
JSON
}

phase() {
  say "$@"
  record "$@" || say "the record does not take the phase: $1"
}

count() { # objects of the record's boots whose names end with $1
  aws s3 ls "$STORAGE/@BOOTS_KEY@" | grep -c "$1\$" || true
}

# --- the end, reached from everywhere ---

finish() {
  local code=$?
  trap - ERR
  trap '' TERM
  set +eu
  INSTANCE=${INSTANCE:-unknown} # a metadata service that failed has left it empty
  case $code in
    @EXIT_DONE@ | @EXIT_ENDED@) phase @PHASE_ENDED@ "the run is over (supervisor: $code)" && close_group ;;
    @EXIT_TAKEN@ | @EXIT_CONTINUES@) phase @PHASE_ENDED@ "the run continues elsewhere (supervisor: $code)" ;;
    *) fail "$code" ;;
  esac
  shutdown -P now
}

fail() {
  phase @PHASE_FAILED@ "${FAILURE:-exit code $1}"
  timeout 60 aws s3 cp --only-show-errors "$LOG" "$STORAGE/@BOOT_LOG_KEY@"
  if (($(count @BOOT_LOG_SUFFIX@) >= MAX_FAILURES)); then
    say "$MAX_FAILURES machines have failed: no other is asked for"
    close_group
  fi
}

# As the group role, which the key ties to this group. Its credentials are for this one call: they are not exported, and
# they are no process's arguments. A bare `return` would give, within the trap, the status before it.
update_group() {
  local credentials id secret token
  credentials=$(timeout 60 aws sts assume-role --role-arn "$GROUP_ROLE" --role-session-name "$INSTANCE" \
    --duration-seconds 900 --tags "Key=@KEY_TAG@,Value=$KEY" \
    --query 'Credentials.[AccessKeyId, SecretAccessKey, SessionToken]' --output text) || return 1
  read -r id secret token <<<"$credentials"
  AWS_ACCESS_KEY_ID=$id AWS_SECRET_ACCESS_KEY=$secret AWS_SESSION_TOKEN=$token timeout 120 \
    aws autoscaling update-auto-scaling-group --auto-scaling-group-name "$GROUP" "$@"
}

close_group() {
  update_group --min-size 0 --max-size 0 --desired-capacity 0 ||
    say "the group is not closed: another machine will boot, find the run over, and try"
}

trap finish EXIT
trap 'exit @EXIT_CONTINUES@' TERM
trap 'FAILURE="$BASH_COMMAND (exit code $?)"; say "failed: $FAILURE"' ERR
set -Eeuo pipefail

# --- this instance ---

imds() { curl -sSf --retry 5 --max-time 10 -H "X-aws-ec2-metadata-token: $TOKEN" "$IMDS/latest/meta-data/$1"; }

identify() {
  TOKEN=$(curl -sSf --retry 5 --max-time 10 -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 600' "$IMDS/latest/api/token")
  INSTANCE=$(imds instance-id)
  TYPE=$(imds instance-type)
  ZONE=$(imds placement/availability-zone)
  MARKET=$(imds instance-life-cycle)
}

# After ON_DEMAND_AFTER interruptions the next machine is bought on demand. This one, if it is still a spot machine,
# changes the group's purchase option and terminates, so that the group replaces it.
buy_on_demand() {
  [[ $ON_DEMAND_AFTER -gt 0 && $MARKET == spot && $(count @BOOT_SUFFIX@) -gt $ON_DEMAND_AFTER ]] || return 0
  if update_group --min-size 0 --max-size 1 --mixed-instances-policy \
    '{"InstancesDistribution": {"OnDemandPercentageAboveBaseCapacity": 100}}'; then
    say "interrupted $ON_DEMAND_AFTER times: the next machine is bought on demand"
    exit @EXIT_CONTINUES@
  fi
  say "the group cannot be changed to on demand: the run continues on spot"
}

# --- disks ---

# The instance's own NVMe, striped: 16 GB/s on a P4d. Some AMIs have striped and mounted them already.
mount_disks() {
  local disks device
  if mountpoint -q /opt/dlami/nvme; then
    DISK=/opt/dlami/nvme/mtl-cloud
  else
    mapfile -t disks < <(lsblk --nodeps --noheadings --paths --output NAME,MODEL | awk '/Amazon EC2 NVMe Instance Storage/ {print $1}')
    say "${#disks[@]} instance disks"
    if ((${#disks[@]} > 0)); then
      device=${disks[0]}
      if ((${#disks[@]} > 1)); then
        device=/dev/md0
        mdadm --create "$device" --run --force --level=0 --raid-devices="${#disks[@]}" "${disks[@]}"
      fi
      mkfs.ext4 -q -m 0 -E nodiscard,lazy_itable_init=1,lazy_journal_init=1 "$device"
      mkdir -p "$DISK"
      mount -o noatime,discard "$device" "$DISK"
    fi
  fi
  install -d -m 0711 "$DISK/docker" "$DISK/containerd"
  install -d -m 1777 "$DISK/tmp"
}

# Bind mounts, so that the engine's own configuration (the GPU runtime) stays as the AMI made it.
move_docker() {
  systemctl stop docker.socket docker containerd
  mkdir -p /var/lib/docker /var/lib/containerd
  mount --bind "$DISK/docker" /var/lib/docker
  mount --bind "$DISK/containerd" /var/lib/containerd
  systemctl start containerd docker
}

# --- the image ---

pull() {
  local registry=${IMAGE%%/*} region try
  region=$(sed -nE 's/^[0-9]+\.dkr\.ecr\.([a-z0-9-]+)\.amazonaws\.com(\.cn)?$/\1/p' <<<"$registry")
  for try in 1 2 3; do
    if log_in "$registry" "$region" && docker pull --quiet "$IMAGE"; then
      return
    fi
    FAILURE="docker pull $IMAGE failed $try times"
    say "$FAILURE"
    sleep $((try * 5))
  done
  return 1
}

# The token is valid for twelve hours, so it is requested here, at the pull.
log_in() {
  [[ -z $2 ]] || aws ecr get-login-password --region "$2" | docker login --username AWS --password-stdin "$1"
}

run() {
  local options=()
  ((GPUS == 0)) || options+=(--gpus "$GPUS")
  docker run --name "@CONTAINER@" --hostname "$INSTANCE" --stop-timeout @STOP_TIMEOUT_S@ \
    --read-only --cap-drop ALL --security-opt no-new-privileges \
    --shm-size "$(awk '/^MemTotal/ {print int($2 / 2)}' /proc/meminfo)k" \
    --ulimit memlock=-1 --ulimit stack=67108864 --ulimit nofile=1048576:1048576 \
    --volume "$DISK/tmp:/tmp" --env AWS_REGION="$REGION" --env AWS_DEFAULT_REGION="$REGION" \
    "${options[@]}" "$IMAGE" @SUPERVISOR_ARGUMENTS@
}

identify
phase @PHASE_BOOTING@
systemctl stop apt-daily.timer apt-daily-upgrade.timer unattended-upgrades 2>/dev/null || true
buy_on_demand
mount_disks
move_docker
phase @PHASE_PULLING@ "$IMAGE"
pull || exit 1
phase @PHASE_RUNNING@
code=0
run || code=$?
FAILURE="the container ended with code $code"
exit "$code"
