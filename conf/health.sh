#!/bin/bash
# Does a container answer a real question? An open port is not an answer. Needs bash and coreutils only, so that it runs
# in every image; a JVM per question would cost more than the service itself.
#     health.sh zookeeper | kafka | namenode | datanode | http PORT PATH [PATTERN]
set -u

# ask HOST PORT: sends standard input, prints what comes back within 4 s.
ask() {
    exec 3<>"/dev/tcp/$1/$2" || exit 1
    cat >&3
    timeout 4 cat <&3
}

# page PORT PATH: the answer with its status line.
page() { printf 'GET %s HTTP/1.0\r\nHost: localhost\r\n\r\n' "$2" | ask 127.0.0.1 "$1"; }

case ${1:?what is asked} in
zookeeper) # srvr is the one command that is allowed by default
    printf srvr | ask 127.0.0.1 2181 | grep -q '^Mode: ' ;;
kafka) # Metadata request, version 1, of no topic; after length and correlation id the answer has the number of brokers
    brokers=$(printf '\0\0\0\016\0\003\0\001\0\0\0\001\377\377\0\0\0\0' |
        { exec 3<>/dev/tcp/127.0.0.1/29092 || exit 1; cat >&3; timeout 4 head -c 12 <&3; } | od -An -tu1 -j 8)
    [[ $brokers =~ [1-9] ]] ;;
namenode) # Operational means: out of safe mode
    page 9870 '/jmx?qry=Hadoop:service=NameNode,name=FSNamesystemState' | grep -q '"FSState" : "Operational"' ;;
datanode) # it spoke with its NameNode within the last 9 s
    page 9864 '/jmx?qry=Hadoop:service=DataNode,name=DataNodeInfo' | grep -qE 'LastHeartbeat[^0-9]+[0-9][^0-9]' ;;
http)
    answer=$(page "$2" "$3")
    [[ $answer =~ ^HTTP/1\.[01]\ 200 && $answer =~ ${4:-.} ]] ;;
*)
    echo "health.sh: unknown: $1" >&2
    exit 2 ;;
esac
