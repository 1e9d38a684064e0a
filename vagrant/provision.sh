#!/bin/sh
# Makes this machine one host of the lab, now and at each boot. Usage: provision.sh HOST ADDRESS
#
# All that the host needs is known to `xtask lab host`, the code that also makes `cargo xtask lab up`.
set -eu

host=$1
address=$2

install -m 755 /opt/ballast/ballast /opt/ballast/xtask /usr/local/bin/

interface=$(ip -o -4 address show to "$address" | awk '{ print $2; exit }')
if [ -z "$interface" ]; then
    echo "no interface has $address: \`vagrant reload $host\` sets the network up again" >&2
    exit 1
fi

# On a balancer, `ballast status` and the other commands find the lab's daemon where they expect one.
link=
case $host in
lb-*)
    socket=/run/ballast-lab/ballast/$host/ballast.sock
    link="ExecStartPost=/bin/sh -c 'mkdir -p /run/ballast && ln -sfn $socket /run/ballast/ballast.sock'"
    ;;
esac

cat > /etc/systemd/system/ballast-lab.service <<UNIT
[Unit]
Description=ballast's lab: this machine is $host
Wants=network-online.target
After=network-online.target

[Service]
Type=oneshot
RemainAfterExit=yes
# It leaves the host's programs running.
ExecStart=/usr/local/bin/xtask lab host $host --interface $interface --ballast /usr/local/bin/ballast
$link
TimeoutStartSec=15min

[Install]
WantedBy=multi-user.target
UNIT
systemctl daemon-reload
systemctl enable ballast-lab.service
# Not `start`: a machine that is provisioned again gets the new programs.
systemctl restart ballast-lab.service
